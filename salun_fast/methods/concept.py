"""Text-to-image diffusion: forgetting what a prompt means (SalUn, section 4, appendix B.3)."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_fast.diffusion.components import Components
from salun_fast.diffusion.denoising import Denoising, reduced
from salun_fast.diffusion.encoded import Encoded, encode
from salun_fast.diffusion.noisy import NoisyBatch, NoisyBatches
from salun_fast.diffusion.pixels import check_range
from salun_fast.diffusion.trainable import trainable_names
from salun_fast.digests import model_digest
from salun_fast.evaluation.resources import PeakMemory
from salun_fast.mask import SaliencyMask
from salun_fast.methods.diffusion import (
    DiffusionResult,
    MaskedRun,
    Watch,
    averaged,
    fitted_mask,
    let_train,
    open_names,
)
from salun_fast.methods.diffusion_settings import ConceptSettings, resolve_concept
from salun_fast.methods.forgetting import Forgetting
from salun_fast.methods.loop import repeatable, restore, run_folder
from salun_fast.methods.step_loop import OnSnapshot, OnStep

Prompts = str | Sequence[str]  # one for all images, or one per image


@dataclass(frozen=True)
class ConceptResult(DiffusionResult):
    """pipeline: as the one passed, with the unlearned UNet in it and all else shared; None where
    Components were passed."""

    pipeline: Any


def unlearn_concept(
    pipeline: Any,
    forget_images: Tensor,
    retain_images: Tensor,
    *,
    forget_prompt: Prompts,
    replacement_prompt: Prompts,
    retain_prompts: Prompts,
    alpha: float | None = None,
    method: str = "salun",
    preset: str = "paper",
    mask: SaliencyMask | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: OnStep | None = None,
    on_snapshot: OnSnapshot | None = None,
    snapshot_every: int = 0,
    **overrides: Any,
) -> ConceptResult:
    """Teach a copy of a pipeline's UNet to draw the replacement where the forget prompt asks.

    Minimises ‖ε(x_t, t, forget prompt) − stopgrad ε(x_t, t, replacement prompt)‖² on forget images
    plus α times the ordinary denoising loss on retain images and prompts, moving only the most
    salient weights. VAE, text encoder, safety checker and the pipeline passed are left alone.

    pipeline: a ``StableDiffusionPipeline``, or ``Components``.
    forget_images, retain_images: [n, c, h, w], uint8 or in [-1, 1]. Of the forget images only
        x_t is used, so they may be generated from the forget prompt.
    forget_prompt, replacement_prompt, retain_prompts: one for all images, or one per image.
    alpha: weight of the retain loss; fields of ConceptSettings may be given as ``overrides``:
        ``trainable="xattn"``, ``gradient_checkpointing=True``, ...
    method, preset, mask, seed, run_dir, resume, on_step, on_snapshot: as for ``unlearn_ddpm``.
    cache_dir: where latents and prompt embeddings are kept for the next run; by default
        ``run_dir/cache``. Without either they are computed anew.

    Runs where the pipeline is; nothing is fetched from a hub. Warns where a prompt is longer than
    the tokenizer's limit and is cut. Raises ValueError or TypeError before anything is trained.
    """
    if alpha is not None:
        overrides["alpha"] = alpha
    settings = resolve_concept(method, preset, overrides)
    components = Components.of(pipeline)
    components.check_fit()
    names = trainable_names(components.unet, settings.trainable)
    mask = fitted_mask(mask, method, components.unet, names)
    denoising = Denoising(components.scheduler)
    asked = _asked(
        components, forget_images, retain_images, forget_prompt, replacement_prompt, retain_prompts
    )
    watch = Watch(progress, on_step, on_snapshot, snapshot_every)
    components.warn_of_cuts(asked.prompts)
    cache = _cache_folder(cache_dir, run_dir)
    with PeakMemory(components.device) as peak, repeatable(seed, components.device):
        started = time.perf_counter()
        task = _encoded(components, asked, denoising, cache)
        encoding = time.perf_counter() - started
        identity = _identity(components, task, method, settings, seed, mask)
        folder = run_folder(run_dir)
        resumed = restore(folder, resume, identity)
        unet = copy.deepcopy(components.unet)
        forgetting = _Forgetting(unet, task, settings, seed)
        forgetting.check_prediction(unet)
        with _checkpointed(unet, settings.gradient_checkpointing):
            run = MaskedRun(
                unet,
                settings,
                method,
                seed,
                forgetting.saliency_losses,
                names,
                names if settings.count_over == "trainable" else open_names(components.unet),
                mask,
                resumed,
            )
            run.seconds.setdefault("encode", encoding)
            loop = run.loop(
                forgetting.ascent if method == "ga" else forgetting, identity, folder, watch
            )
            history = loop.run()
    seconds = dict(run.seconds, train=sum(record.seconds for record in history))
    result = ConceptResult(
        unet=unet,
        averaged=averaged(loop),
        history=history,
        seconds=seconds | {"total": sum(seconds.values())},
        peak_memory_mb=peak.megabytes,
        settings=settings,
        method=method,
        mask=run.mask,
        certificate=run.certificate(components.unet),
        pipeline=None if isinstance(pipeline, Components) else with_unet(pipeline, unet),
    )
    let_train(unet, open_names(components.unet))
    return result


def _cache_folder(
    cache_dir: str | os.PathLike[str] | None, run_dir: str | os.PathLike[str] | None
) -> Path | None:
    if cache_dir is not None:
        return Path(cache_dir)
    return None if run_dir is None else Path(run_dir) / "cache"


def with_unet(pipeline: Any, unet: Any) -> Any:
    """A pipeline of the same class with another UNet; everything else is shared, and its progress
    bar is shown where the other's is."""
    options = {
        name: pipeline.config[name]
        for name in ("requires_safety_checker",)
        if name in pipeline.config
    }
    twin = type(pipeline)(**{**pipeline.components, "unet": unet}, **options)
    twin.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return twin


@dataclass(frozen=True)
class _Asked:
    """Images with a prompt each."""

    forget_images: Tensor
    retain_images: Tensor
    forget: list[str]
    replacement: list[str]
    retain: list[str]

    @property
    def prompts(self) -> list[str]:
        return [*self.forget, *self.replacement, *self.retain]


@dataclass(frozen=True)
class _Task:
    """All of it encoded; replacement: embeddings per forget image by their distinct prompts.
    nothing: the empty prompt's embedding [1, length, width]."""

    forget: Encoded
    retain: Encoded
    replacement: Encoded
    nothing: Tensor
    denoising: Denoising


class _Forgetting(Forgetting):
    """A prompt: conditions are prompt embeddings."""

    settings: ConceptSettings

    def __init__(self, unet: Any, task: _Task, settings: ConceptSettings, seed: int) -> None:
        super().__init__(
            settings,
            _noisy(unet, task.forget, task.denoising, settings, seed, "forget"),
            forget_reduction="mean",
            saliency_reduction="mean",
        )
        self._unet, self._task = unet, task
        self._retain = _noisy(
            unet, task.retain, task.denoising, settings, seed, "retain"
        ).sequence()

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        taken = noisy.to(self._unet.dtype)
        prediction: Tensor = self._unet(
            taken, timesteps, encoder_hidden_states=condition.to(taken)
        ).sample
        return prediction

    def forgotten(self, batch: NoisyBatch) -> Tensor:
        return self._task.forget.conditions(batch.indices)

    def nothing(self, batch: NoisyBatch) -> Tensor:
        return self._task.nothing.expand(len(batch.indices), -1, -1)

    def taught(self, batch: NoisyBatch) -> Tensor:
        noisy = self.noisy.renoised(batch) if self.settings.redraw_posterior else batch.noisy
        replacing = self._task.replacement.conditions(batch.indices)
        return self.predict(noisy, batch.timesteps, replacing)

    def retained(self, number: int) -> Tensor:
        """The prompt is dropped now and then."""
        batch = self._retain(number)
        chances = torch.rand(len(batch.indices), generator=batch.generator)
        dropped = (chances < self.settings.condition_dropout)[:, None, None]
        conditions = self._task.retain.conditions(batch.indices)
        conditions = torch.where(dropped, self._task.nothing, conditions)
        said = self.predict(batch.noisy, batch.timesteps, conditions)
        return reduced(said, batch.target, "mean")


def _noisy(
    unet: Any,
    data: Encoded,
    denoising: Denoising,
    settings: ConceptSettings,
    seed: int,
    purpose: str,
) -> NoisyBatches:
    device = next(unet.parameters()).device

    def clean(indices: Tensor, generator: torch.Generator) -> Tensor:
        return data.latents(indices, generator).to(device, torch.float32)

    return NoisyBatches(
        clean,
        len(data),
        denoising,
        device,
        settings.batch_size,
        seed,
        purpose,
        settings.antithetic,
    )


@contextmanager
def _checkpointed(unet: Any, wanted: bool) -> Iterator[None]:
    """Activations recomputed in backward, where asked; as it was afterwards."""
    before = unet.is_gradient_checkpointing
    if wanted and not before:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted and not before:
            unet.disable_gradient_checkpointing()


def _asked(
    components: Components,
    forget_images: Tensor,
    retain_images: Tensor,
    forget_prompt: Prompts,
    replacement_prompt: Prompts,
    retain_prompts: Prompts,
) -> _Asked:
    for name, images in (("forget_images", forget_images), ("retain_images", retain_images)):
        _check_images(components, images, name)
    count = len(forget_images)
    asked = _Asked(
        forget_images,
        retain_images,
        _one_each("forget_prompt", forget_prompt, count),
        _one_each("replacement_prompt", replacement_prompt, count),
        _one_each("retain_prompts", retain_prompts, len(retain_images)),
    )
    if "" in (prompt.strip() for prompt in asked.forget):
        raise ValueError(
            "forget_prompt must say something, found an empty prompt: that is the one guidance "
            "starts from, and forgetting it would change every picture"
        )
    _check_told_apart(components, asked)
    return asked


def _check_told_apart(components: Components, asked: _Asked) -> None:
    """By tokens, which are what the UNet learns of: case and what is cut off do not count."""
    meant = {p: tuple(components.tokens([p])[0].tolist()) for p in dict.fromkeys(asked.prompts)}
    for forget, replacement in dict.fromkeys(zip(asked.forget, asked.replacement, strict=True)):
        if meant[forget] == meant[replacement]:
            raise ValueError(
                f"replacement_prompt must differ from forget_prompt, {replacement!r} and "
                f"{forget!r} are the same tokens (after the cut at {components.token_limit}); name "
                "what should be drawn instead"
            )
    forgotten = {meant[prompt] for prompt in asked.forget}
    kept = next((prompt for prompt in asked.retain if meant[prompt] in forgotten), None)
    if kept is not None:
        raise ValueError(
            f"retain_prompts hold {kept!r}, which is to be forgotten; take those images out, or "
            "they teach it again"
        )


def _one_each(role: str, prompts: Prompts, count: int) -> list[str]:
    if isinstance(prompts, str):
        return [prompts] * count
    given = list(prompts) if isinstance(prompts, Sequence) else [prompts]
    if len(given) != count or not all(isinstance(prompt, str) for prompt in given):
        raise ValueError(
            f"{role} must be one string, or one per image ({count}), found {len(given)} items"
        )
    return given


def _check_images(components: Components, images: Tensor, name: str) -> None:
    channels = int(components.vae.config.in_channels)
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != channels:
        found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"{name} must be a tensor [n, {channels}, height, width] for this VAE, found {found}"
        )
    if not len(images):
        raise ValueError(f"{name} holds no images; give at least one")
    levels = len(components.unet.config.block_out_channels) - 1
    multiple = components.pixels_per_latent * 2**levels
    if images.shape[2] % multiple or images.shape[3] % multiple:
        raise ValueError(
            f"{name} must have sides that are multiples of {multiple} pixels for this VAE and "
            f"UNet, found {images.shape[2]} x {images.shape[3]}; resize them"
        )
    check_range(images, name)


def _encoded(
    components: Components, asked: _Asked, denoising: Denoising, cache: Path | None
) -> _Task:
    """The replacement shares the forget images' latents; only its prompts are its own."""
    forget = encode(components, asked.forget_images, asked.forget, cache)
    distinct = list(dict.fromkeys(asked.replacement))
    replacement = Encoded(
        forget.mean,
        forget.std,
        components.embeddings(distinct),
        torch.tensor([distinct.index(prompt) for prompt in asked.replacement]),
    )
    return _Task(
        forget,
        encode(components, asked.retain_images, asked.retain, cache),
        replacement,
        components.embeddings([""]),
        denoising,
    )


def _identity(
    components: Components,
    task: _Task,
    method: str,
    settings: ConceptSettings,
    seed: int,
    mask: SaliencyMask | None,
) -> dict[str, Any]:
    """What must be the same for a resumed run."""
    return {
        "method": method,
        "seed": seed,
        **asdict(settings),
        "prediction_type": task.denoising.prediction_type,
        "noise": task.denoising.noise_digest,
        "model": model_digest(components.unet),
        "forget": task.forget.digest,
        "replacement": task.replacement.digest,
        "retain": task.retain.digest,
        "mask": None if mask is None else mask.fingerprint,
    }
