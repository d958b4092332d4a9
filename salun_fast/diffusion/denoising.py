"""The denoising task: noise, what the network is to predict, guidance, and how losses are reduced.

Ho et al. 2020 (DDPM), Salimans & Ho 2022 (v-prediction), Ho & Salimans 2022 (classifier-free
guidance, whose w is SalUn's: w = 0 is the plain conditional prediction).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from salun_fast import files
from salun_fast._extras import need

PREDICTION_TYPES = ("epsilon", "v_prediction")


class Denoising:
    """The training task that a diffusers scheduler defines, whichever sampler it is.

    Raises TypeError for what is no scheduler of discrete steps, ValueError for a prediction type
    other than epsilon and v_prediction.
    """

    def __init__(self, scheduler: Any) -> None:
        config = getattr(scheduler, "config", None)
        if config is None or "num_train_timesteps" not in config or "beta_schedule" not in config:
            raise TypeError(
                "scheduler must be a diffusers scheduler of discrete noise steps (DDPMScheduler, "
                f"DDIMScheduler, ...), found {type(scheduler).__name__}"
            )
        kind = config.get("prediction_type", "epsilon")
        if kind not in PREDICTION_TYPES:
            raise ValueError(
                f"scheduler.config.prediction_type must be one of {', '.join(PREDICTION_TYPES)}, "
                f"found {kind!r}; pass the scheduler that the model was trained with"
            )
        self.prediction_type: str = kind
        self.timesteps = int(config["num_train_timesteps"])
        self._scheduler = _noising(config)

    @property
    def noise_digest(self) -> str:
        """SHA-256 (hex) over how much of the clean sample is left at each step."""
        return hashlib.sha256(files.bytes_of(self._scheduler.alphas_cumprod)).hexdigest()

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t, shaped as ``clean`` [b, c, h, w]; timesteps: int64 [b]."""
        noisy: Tensor = self._scheduler.add_noise(clean, noise, timesteps)
        return noisy

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should say about x_t: the noise, or the velocity."""
        return self.target_of(self.prediction_type, clean, noise, timesteps)

    def target_of(self, kind: str, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same for a prediction type that need not be the scheduler's."""
        if kind == "epsilon":
            return noise
        velocity: Tensor = self._scheduler.get_velocity(clean, noise, timesteps)
        return velocity


def _noising(config: Any) -> Any:
    """DDPM with the same noise schedule: samplers add noise at their own steps only."""
    diffusers = need("diffusers", "diffusion models", extra="diffusion")
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
            "prediction_type", "rescale_betas_zero_snr")  # fmt: skip
    return diffusers.DDPMScheduler(**{name: config[name] for name in kept if name in config})


def uniform_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """int64 [count], each uniform over 0..total-1."""
    return torch.randint(total, (count,), generator=generator)


def antithetic_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """int64 [count]: pairs t and total - 1 - t, so that every batch covers early and late noise;
    where count is odd, one of them is alone."""
    half = uniform_timesteps((count + 1) // 2, total, generator)
    return torch.cat([half, total - 1 - half])[:count]


def guided_prediction(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1 + w) · ε(x_t, t, c) − w · ε(x_t, t, ∅)."""
    return (1.0 + guidance) * conditional - guidance * unconditional


def reduced(prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Squared error, 0-dim fp32: "mean" over all elements, or "pixel_sum": summed over each
    sample's elements, averaged over the batch (c·h·w times as large)."""
    squared = (prediction.float() - target.float()).square()
    if reduction == "mean":
        return squared.mean()
    return squared.flatten(1).sum(dim=1).mean()
