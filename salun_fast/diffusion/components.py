"""The parts of a Stable Diffusion pipeline that unlearning needs, and what prompts become."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salun_fast._eval_mode import eval_mode
from salun_fast.diffusion.pixels import symmetric


@dataclass(frozen=True)
class Components:
    """unet: ``UNet2DConditionModel``; vae: ``AutoencoderKL``; text_encoder: ``CLIPTextModel``;
    tokenizer: its ``CLIPTokenizer``; scheduler: with the noise of the UNet's training."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    @classmethod
    def of(cls, pipeline: Any) -> Components:
        """Those of a ``StableDiffusionPipeline``; TypeError naming what is missing."""
        if isinstance(pipeline, Components):
            return pipeline
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if getattr(pipeline, name, None) is None]
        if missing:
            raise TypeError(
                f"pipeline must be a StableDiffusionPipeline or Components, found "
                f"{type(pipeline).__name__} without {', '.join(missing)}"
            )
        return cls(**{name: getattr(pipeline, name) for name in names})

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels a latent stands for along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def check_fit(self) -> None:
        """Raise ValueError where UNet, VAE and text encoder do not belong together."""
        channels, latents = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != latents:
            raise ValueError(
                f"the UNet takes {channels} channels, the VAE makes {latents}; pass the parts of "
                "one text-to-image pipeline (in-painting UNets take more and are not supported)"
            )
        wanted, width = self.unet.config.cross_attention_dim, self.text_encoder.config.hidden_size
        if isinstance(wanted, int) and wanted != width:
            raise ValueError(
                f"the UNet reads prompts of width {wanted}, the text encoder writes {width}; pass "
                "the parts of one pipeline of Stable Diffusion 1.x or 2.x (later ones have two "
                "text encoders and are not supported)"
            )

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt, start and end included; not every tokenizer names its limit."""
        positions = int(self.text_encoder.config.max_position_embeddings)
        return min(int(self.tokenizer.model_max_length), positions)

    def warn_of_cuts(self, prompts: Sequence[str]) -> None:
        """Say of each distinct prompt over the tokenizer's limit what is kept of it."""
        limit = self.token_limit
        for prompt in dict.fromkeys(prompts):
            ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                kept = self.tokenizer.decode(ids[: limit - 1], skip_special_tokens=True)
                warnings.warn(
                    f"prompt {prompt!r} has {len(ids)} tokens, {limit} is the tokenizer's limit "
                    f"(start and end included): it was cut to {kept.strip()!r}",
                    stacklevel=3,
                )

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """int64 [n, length], padded, and cut at the tokenizer's limit."""
        padded = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.token_limit,
            truncation=True,
            return_tensors="pt",
        )
        ids_of: Tensor = padded.input_ids
        return ids_of

    @torch.no_grad()
    def embeddings(self, prompts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Text encoder's last hidden states on the CPU, [n, length, width]."""
        with eval_mode(self.text_encoder):
            parts = [
                self.text_encoder(ids.to(self.text_encoder.device))[0].cpu()
                for ids in torch.split(self.tokens(prompts), batch_size)
            ]
        return torch.cat(parts)

    @torch.no_grad()
    def posteriors(self, images: Tensor, *, batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, scaled as the UNet takes them, on the CPU,
        [n, c, h, w]; images uint8 or in [-1, 1]."""
        means, deviations = [], []
        with eval_mode(self.vae):
            for chunk in torch.split(images, batch_size):
                pixels = symmetric(chunk).to(self.vae.device, self.vae.dtype)
                found = self.vae.encode(pixels).latent_dist
                means.append(self._scaled(found.mean, shifted=True).cpu())
                deviations.append(self._scaled(found.std, shifted=False).cpu())
        return torch.cat(means), torch.cat(deviations)

    def _scaled(self, values: Tensor, *, shifted: bool) -> Tensor:
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        factor = float(self.vae.config.scaling_factor)
        return (values - shift if shifted else values) * factor
