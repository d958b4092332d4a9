"""Pictures from either kind of pipeline, each a function of seed, request and number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from salun_fast.diffusion.draws import generator_for
from salun_fast.diffusion.sampling import quantised, sample_classes

CLASS_BATCH, PROMPT_BATCH = 128, 8  # pictures at a time; those of prompts are large

Asked = int | str  # a class, or a prompt


class SamplingConfig(Protocol):
    """A configuration that says how pictures are drawn."""

    guidance_scale: float
    sampling_steps: int
    seed: int


@dataclass(frozen=True)
class Sampling:
    """guidance_scale: as diffusers counts it, 1 is none. steps: of the sampler."""

    guidance_scale: float
    steps: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampling steps must be at least 1, found {self.steps}")

    @staticmethod
    def of(config: SamplingConfig) -> Sampling:
        return Sampling(config.guidance_scale, config.sampling_steps, config.seed)


def pictures(pipeline: Any, asked: Asked, count: int, sampling: Sampling) -> Tensor:
    """uint8 [count, c, h, w]: of a class of a ClassConditionalPipeline, or of a prompt.

    What a safety checker withholds is black.
    """
    if isinstance(asked, str):
        return prompt_pictures(pipeline, [asked] * count, sampling)[0]
    return class_pictures(pipeline.unet, pipeline.scheduler, asked, count, sampling)


def class_pictures(unet: Any, scheduler: Any, label: int, count: int, sampling: Sampling) -> Tensor:
    """uint8 [count, c, h, w]; scheduler: that of the training."""
    return sample_classes(
        unet,
        scheduler,
        [label] * count,
        [(sampling.seed, label, number) for number in range(count)],
        guidance_scale=sampling.guidance_scale,
        steps=sampling.steps,
        batch_size=CLASS_BATCH,
    )


def prompt_pictures(
    pipeline: Any, prompts: Sequence[str], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """One picture per prompt, uint8 [n, c, h, w], and which of them the pipeline's safety checker
    withheld, bool [n]."""
    images: list[Tensor] = []
    withheld: list[bool] = []
    for start in range(0, len(prompts), PROMPT_BATCH):
        here = list(prompts[start : start + PROMPT_BATCH])
        said = pipeline(
            here,
            generator=[
                generator_for(sampling.seed, "picture", prompt, start + place)
                for place, prompt in enumerate(here)
            ],
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.steps,
            output_type="pt",
        )
        images.append(quantised(said.images.float().cpu()))
        withheld += getattr(said, "nsfw_content_detected", None) or [False] * len(here)
    return torch.cat(images), torch.tensor(withheld, dtype=torch.bool)
