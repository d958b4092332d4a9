"""Pixels as diffusion models take them: floating point in [-1, 1], kept as uint8 where they can."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_SLACK = 1e-3  # rounding of images that were scaled in half precision


def check_range(images: Tensor, name: str) -> None:
    """Raise for what is neither uint8 nor floating point in [-1, 1]; warn where it looks like
    0..1."""
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating point in [-1, 1], found {images.dtype}")
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):
        raise ValueError(
            f"{name} must lie in [-1, 1], found values from {low:.4g} to {high:.4g}; pass "
            "uint8 images, or x / 127.5 - 1"
        )
    if low >= 0:
        warnings.warn(
            f"{name} hold no negative value (found {low:.4g} to {high:.4g}), but [-1, 1] is "
            "expected; if they lie in 0..1, pass 2 * x - 1",
            stacklevel=4,
        )


def symmetric(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]; floating point as it is."""
    return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images
