"""Sampling from a class-conditional UNet with classifier-free guidance, as a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salun_fast._extras import need

need("diffusers", "class-conditional sampling", extra="diffusion")

from diffusers import DiffusionPipeline, ImagePipelineOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

from salun_fast.diffusion.classes import class_count, sample_shape  # noqa: E402


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """``UNet2DModel`` + scheduler: images of given classes.

    diffusers has no class-conditional sampler with guidance for ``UNet2DModel``; this one follows
    its conventions, ``save_pretrained`` and ``from_pretrained`` included. The UNet's last class
    embedding is the null class ∅ ("no condition"): ``num_class_embeds`` is C + 1.

    Example:
        >>> pipeline = ClassConditionalPipeline(unet=unet, scheduler=DDIMScheduler())
        >>> images = pipeline([3, 3, 7], generator=torch.Generator().manual_seed(0)).images
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        *,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate one image per label.

        class_labels: classes 0..C-1, one per image.
        guidance_scale: as diffusers counts it, ε(∅) + scale · (ε(c) − ε(∅)): 1 is no guidance;
            SalUn's w is scale − 1, so its w = 2 is 3.0.
        generator: one for all images, or a list of one per image, which makes an image depend on
            its own generator alone.
        latents: the noise to start from, [n, c, h, w], instead of drawing it.
        output_type: "pil", "np" (fp32 [n, h, w, c] in 0..1) or "pt" (fp32 [n, c, h, w] in 0..1).

        Returns an ``ImagePipelineOutput``, or a tuple without ``return_dict``. Raises ValueError
        for a label that is no class of the model.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', found {output_type!r}")
        labels = self._checked_labels(class_labels)
        sample = self._start(len(labels), generator, latents)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        sample = sample * self.scheduler.init_noise_sigma
        extra = self._step_options(generator)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            prediction = self._predict(sample, timestep, labels, guidance_scale)
            sample = self.scheduler.step(prediction, timestep, sample, **extra).prev_sample
        images = self._finished(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _checked_labels(self, class_labels: int | Sequence[int] | Tensor) -> Tensor:
        classes = class_count(self.unet)
        try:
            labels = torch.as_tensor(class_labels).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            labels = torch.empty(0)
        whole = not (labels.is_floating_point() or labels.is_complex()) and len(labels) > 0
        if not whole or labels.dtype == torch.bool:
            raise ValueError(
                f"class_labels must be one class 0..{classes - 1}, or a list or tensor of them, "
                f"found {class_labels!r}"
            )
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ValueError(
                f"class_labels must be classes 0..{classes - 1} of this model, found "
                f"{int(wrong[0])}"
            )
        return labels.to(self._execution_device, torch.int64)

    def _start(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        shape = (count, *sample_shape(self.unet))
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(
                f"generator must be one, or a list of one per image ({count}), found "
                f"{len(generator)}"
            )
        if latents is None:
            drawn: Tensor = randn_tensor(
                shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype
            )
            return drawn
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must be {list(shape)}, found {list(latents.shape)}")
        return latents.to(self._execution_device, self.unet.dtype)

    def _step_options(self, generator: Any) -> dict[str, Any]:
        """Not every scheduler draws noise in its steps."""
        known = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in known else {}

    def _predict(
        self, sample: Tensor, timestep: Tensor, labels: Tensor, guidance_scale: float
    ) -> Tensor:
        scaled = self.scheduler.scale_model_input(sample, timestep)
        if guidance_scale == 1.0:
            plain: Tensor = self.unet(scaled, timestep, class_labels=labels).sample
            return plain
        both = torch.cat([labels, torch.full_like(labels, class_count(self.unet))])
        twice = scaled.repeat(2, 1, 1, 1)
        prediction: Tensor = self.unet(twice, timestep, class_labels=both).sample
        conditional, unconditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _finished(self, sample: Tensor, output_type: str) -> Any:
        images = (sample.float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array
