"""Pictures from a class-conditional UNet, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salun_fast._extras import need
from salun_fast.diffusion.draws import generator_for


def sample_classes(
    unet: Any,
    scheduler: Any,
    labels: Sequence[int],
    seeds: Sequence[object],
    *,
    guidance_scale: float = 3.0,
    steps: int = 15,
    batch_size: int = 128,
) -> Tensor:
    """uint8 [n, c, h, w] on the CPU: one picture per label, drawn from its seed alone.

    So the picture of (label, seed) is comparable between models, whatever else is drawn with it.
    scheduler: of the training; sampled by DPM-Solver++ (Lu et al. 2022) with dynamic thresholding,
    which keeps few guided steps in pixel space from saturating.
    """
    from salun_fast.diffusion.class_pipeline import ClassConditionalPipeline

    diffusers = need("diffusers", "sampling", extra="diffusion")
    sampler = diffusers.DPMSolverMultistepScheduler.from_config(
        scheduler.config, thresholding=True, timestep_spacing="trailing"
    )
    pipeline: Any = ClassConditionalPipeline(unet, sampler)
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, len(labels), batch_size):
        chosen = slice(first, first + batch_size)
        drawn = pipeline(
            list(labels[chosen]),
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=[generator_for(0, "sample", seed) for seed in seeds[chosen]],
            output_type="pt",
        )
        parts.append(quantised(drawn.images))
    return torch.cat(parts)


def quantised(images: Tensor) -> Tensor:
    """0..1 to uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
