"""Checks of models and data before anything is changed."""

from __future__ import annotations

import torch
from torch import nn

from salun_fast._eval_mode import eval_mode
from salun_fast.data import ImageSet


def device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("model has no parameters, so there is nothing to train or unlearn")
    return parameter.device


@torch.no_grad()
def class_count(model: nn.Module, data: ImageSet, name: str) -> int:
    """The number of classes the model tells apart, asked by one image in eval mode."""
    check_not_empty(name, data)
    try:
        images, _ = data.batch(torch.zeros(1, dtype=torch.int64, device=data.labels.device))
        with eval_mode(model):
            logits = model(images.to(device_of(model)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the model does not take the {name} images of shape {list(data.images.shape[1:])} "
            f"({data.images.dtype}): {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the model must return logits [batch, classes], found {found}")
    return int(logits.shape[1])


def check_not_empty(name: str, data: ImageSet) -> None:
    if len(data) == 0:
        raise ValueError(f"{name} holds no images; give at least one")


def check_labels(name: str, data: ImageSet, num_classes: int) -> None:
    check_not_empty(name, data)
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} labels must lie in 0..{num_classes - 1} for a model of {num_classes} "
            f"classes, found {low if low < 0 else high} at index "
            f"{int(((data.labels < 0) | (data.labels >= num_classes)).nonzero()[0])}; relabel the "
            "data or build the model with more classes"
        )


def check_same_shape(name: str, data: ImageSet, other_name: str, other: ImageSet) -> None:
    if data.images.shape[1:] != other.images.shape[1:]:
        raise ValueError(
            f"{name} and {other_name} images must have the same shape, found "
            f"{list(data.images.shape[1:])} and {list(other.images.shape[1:])}; resize one of them"
        )
