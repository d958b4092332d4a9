"""What one epoch of a method goes through: batches in order, with the labels to be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from salun_fast.data import Batches, ImageSet
from salun_fast.methods.settings import TrainSettings

EpochBatches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """batches(generator): one epoch of (images, labels); steps, images: how many those are;
    ascent: climb the loss instead of descending it."""

    batches: Callable[[torch.Generator], EpochBatches]
    steps: int
    images: int
    ascent: bool = False


def plain_plan(data: ImageSet, settings: TrainSettings, *, ascent: bool = False) -> Plan:
    """True labels of one set, shuffled: training, FT and Retrain on D_r, GA (ascent) on D_f."""
    return Plan(
        lambda generator: shuffled(data, settings, generator),
        steps=-(-len(data) // settings.batch_size),
        images=len(data),
        ascent=ascent,
    )


def shuffled(data: ImageSet, settings: TrainSettings, generator: torch.Generator) -> Batches:
    return Batches(
        data,
        settings.batch_size,
        generator=generator,
        augment=settings.augment,
        channels_last=settings.channels_last,
    )
