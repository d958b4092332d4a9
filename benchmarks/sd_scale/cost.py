"""What each phase must hold in memory, and move through it, by counting bytes per weight.

Activations, gradients in the making and the libraries themselves are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

FP32, INT64 = 4, 8


class Bytes(NamedTuple):
    """held: at once, by weights and all that has their number. moved: read and written; None where
    the arithmetic of the network decides the time."""

    held: int
    moved: int | None = None


def ours(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Bytes]:
    """By phase; weights and gradients have ``dtype``, scores and Adam's moments are fp32."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    n, size = sum(sizes), dtype.itemsize
    words = mask_bytes(shapes)
    step = n * (2 * size + 2 * FP32) + words
    return {
        "saliency": Bytes(n * (size + FP32) + size * max(sizes)),
        "mask": Bytes(n * (size + FP32) + words, n * 2 * FP32 + words),
        "save": Bytes(n * size + words),
        "load": Bytes(n * size + words),
        "batch": Bytes(n * 2 * size + words),
        "first step": Bytes(step),
        "step": Bytes(step, n * (3 * size + 4 * FP32) + words),
    }


def mask_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """One bit per weight, in 32-bit words per tensor."""
    return sum(4 * math.ceil(math.prod(shape) / 32) for shape in shapes.values())


def reference(weights: int) -> dict[str, Bytes]:
    """By phase, fp32. Without the model where the reference has it on a GPU and needs it not."""
    return {
        # Weights, their gradients, and the sums of gradients.
        "saliency": Bytes(weights * 3 * FP32),
        # Sums, all of them negated in one vector, order and ranks (int64); beside these first the
        # sorted order, then the masks (int64 either).
        "mask": Bytes(weights * (2 * FP32 + 3 * INT64)),
        "save": Bytes(weights * INT64),
        "load": Bytes(weights * INT64),
        # Weights, gradients and masks; a step adds the moments.
        "batch": Bytes(weights * (2 * FP32 + INT64)),
        "first step": Bytes(weights * (4 * FP32 + INT64)),
        "step": Bytes(weights * (4 * FP32 + INT64)),
    }
