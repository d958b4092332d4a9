"""Random labelling (Golatkar et al. 2020), the loss that SalUn masks (SalUn, eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from salun_fast.data import ImageSet
from salun_fast.methods.plans import EpochBatches, Plan, shuffled
from salun_fast.methods.settings import ClassifierSettings


def draw_labels(
    labels: Tensor, num_classes: int, *, true_label_included: bool, generator: torch.Generator
) -> Tensor:
    """One uniform label per image, int64 [n], on the labels' device.

    Over all classes when the true one is included (the authors' code), else over the other
    classes (the paper's formula): then c + 1 + u modulo C with u uniform in 0..C-2.
    """
    if true_label_included:
        drawn = torch.randint(0, num_classes, labels.shape, generator=generator)
        return drawn.to(labels.device)
    shift = 1 + torch.randint(0, num_classes - 1, labels.shape, generator=generator)
    return (labels.long() + shift.to(labels.device)) % num_classes


def random_label_plan(
    forget: ImageSet, retain: ImageSet | None, settings: ClassifierSettings, num_classes: int
) -> Plan:
    """Sequential or mixed random labelling; without retain data only the forget images."""
    if num_classes < 2:
        raise ValueError(f"random labels need at least 2 classes, found {num_classes}")
    parts = [forget] if retain is None else [forget, retain]
    size = settings.batch_size
    if settings.order == "mixed":
        together = _joined(parts)
        return Plan(
            lambda generator: _mixed(together, len(forget), settings, num_classes, generator),
            steps=-(-len(together) // size),
            images=len(together),
        )
    return Plan(
        lambda generator: _sequential(forget, retain, settings, num_classes, generator),
        steps=sum(-(-len(part) // size) for part in parts),
        images=sum(len(part) for part in parts),
    )


def _sequential(
    forget: ImageSet,
    retain: ImageSet | None,
    settings: ClassifierSettings,
    num_classes: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of D_f with labels drawn per batch, then all of D_r with the true ones."""
    for images, labels in shuffled(forget, settings, generator):
        yield (
            images,
            draw_labels(
                labels,
                num_classes,
                true_label_included=settings.true_label_included,
                generator=generator,
            ),
        )
    if retain is not None:
        yield from shuffled(retain, settings, generator)


def _mixed(
    together: ImageSet,
    forget_count: int,
    settings: ClassifierSettings,
    num_classes: int,
    generator: torch.Generator,
) -> EpochBatches:
    """D_f and D_r shuffled together; the forget labels are drawn once for the whole epoch."""
    drawn = draw_labels(
        together.labels[:forget_count],
        num_classes,
        true_label_included=settings.true_label_included,
        generator=generator,
    )
    labels = torch.cat([drawn, together.labels[forget_count:].long()])
    return shuffled(replace(together, labels=labels), settings, generator)


def _joined(parts: list[ImageSet]) -> ImageSet:
    forms = {(p.images.dtype, p.mean, p.std) for p in parts}
    if len(forms) > 1:
        raise ValueError(
            "order='mixed' needs forget and retain images of one dtype, normalised alike; give "
            "both the same dtype, mean and std"
        )
    return replace(
        parts[0],
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels.long() for p in parts]),
    )
