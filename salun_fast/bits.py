"""Packed masks in plain torch: one bit per weight in int32 words.

Element ``i`` of a tensor is bit ``i % 32`` of word ``i // 32``; bits past the last element are 0.
Files and :class:`~salun_fast.SaliencyMask` number elements in row-major order of the logical
tensor, whatever its memory format; the masked steps walk memory and take words in memory order.
:func:`to_memory_order` turns the first into the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORD_BITS = 32


def word_count(numel: int) -> int:
    """Number of int32 words that hold ``numel`` bits."""
    return (numel + WORD_BITS - 1) // WORD_BITS


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape and layout, in row-major order.

    Returns an int32 tensor ``[ceil(numel / 32)]`` on the same device.
    """
    if mask.dtype != torch.bool:
        raise TypeError(
            f"bits.pack takes a bool tensor, found {mask.dtype}; compare first, e.g. mask != 0"
        )
    numel = mask.numel()
    padded = mask.new_zeros(word_count(numel) * WORD_BITS, dtype=torch.uint8)
    padded[:numel] = mask.reshape(-1)
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=mask.device)
    octets = (padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)
    return octets.view(torch.int32)


def unpack(words: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`pack`: a contiguous bool tensor of ``shape`` on the device of ``words``."""
    numel = 1
    for size in shape:
        numel *= size
    if words.numel() != word_count(numel):
        raise ValueError(
            f"a mask of shape {tuple(shape)} has {word_count(numel)} words, found {words.numel()}"
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    bits = (octets.unsqueeze(1) >> shifts) & 1
    return bits.reshape(-1)[:numel].view(torch.bool).reshape(tuple(shape))


def count(words: Tensor) -> int:
    """Number of ones."""
    octets = words.contiguous().view(torch.uint8)
    return int(_POPCOUNT.to(octets.device)[octets.to(torch.int64)].sum()) if octets.numel() else 0


def to_memory_order(words: Tensor, like: Tensor) -> Tensor:
    """Renumber row-major bits by the position of each element in the memory of ``like``.

    ``like`` is dense: contiguous up to a permutation of its dimensions (channels_last is).
    For a contiguous ``like`` this returns ``words`` itself.
    """
    if like.is_contiguous():
        return words
    logical = unpack(words, like.shape).to(like.device)
    placed = torch.empty_strided(like.shape, like.stride(), dtype=torch.bool, device=like.device)
    placed.copy_(logical)
    return pack(in_memory_order(placed))


def in_memory_order(tensor: Tensor) -> Tensor:
    """View a dense tensor as the vector of its elements in the order they lie in memory."""
    if tensor.numel() == 0:
        return tensor.reshape(-1)
    return tensor.as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """True where the elements fill one gapless block of memory, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


_POPCOUNT = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.int64)
