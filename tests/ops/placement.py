"""Tensors at addresses that a bucket of gradients has, not an allocation of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensors: list[Tensor], offset: int = 12) -> list[Tensor]:
    """Copies with the same strides, ``offset`` bytes behind a 16-byte boundary."""
    copies = []
    for tensor in tensors:
        skipped = offset // tensor.element_size()
        memory = torch.empty(tensor.numel() + skipped, dtype=tensor.dtype)
        assert memory.data_ptr() % 16 == 0
        copies.append(torch.as_strided(memory, tensor.shape, tensor.stride(), skipped))
        copies[-1].copy_(tensor)
    return copies
