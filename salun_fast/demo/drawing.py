"""Pictures that a text-to-image pipeline draws for the captions of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from salun_fast.demo.captioned import STYLES, CaptionedSet, prompt

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE_SCALE = 4.0
SAMPLING_STEPS = 20
BATCH = 200


def drawn(
    pipeline: StableDiffusionPipeline,
    object_words: Sequence[str],
    *,
    per_caption: int = 1,
    guidance_scale: float = GUIDANCE_SCALE,
    steps: int = SAMPLING_STEPS,
    seed: int = 0,
) -> CaptionedSet:
    """``per_caption`` pictures of every object in every style, ordered by object, style, number.

    Picture k of every caption starts from the same noise, whatever the pipeline's weights: what
    differs between two sets of the same seed is what prompt or weights changed.
    """
    objects = torch.arange(len(object_words)).repeat_interleave(len(STYLES) * per_caption)
    styles = torch.arange(len(STYLES)).repeat_interleave(per_caption).repeat(len(object_words))
    names = tuple(STYLES)
    prompts = [
        prompt(object_words[thing], names[style])
        for thing, style in zip(objects.tolist(), styles.tolist(), strict=True)
    ]
    side = pipeline.unet.config.sample_size
    shape = (per_caption, pipeline.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    noise = noise.repeat(len(object_words) * len(STYLES), 1, 1, 1).to(pipeline.device)
    parts = [
        pipeline(
            prompts[start : start + BATCH],
            latents=noise[start : start + BATCH],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="pt",
        ).images
        for start in range(0, len(prompts), BATCH)
    ]
    images = (torch.cat(parts).float().cpu() * 255.0).round().to(torch.uint8)
    return CaptionedSet(images, objects, styles, tuple(object_words))
