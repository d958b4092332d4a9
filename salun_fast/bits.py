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
RANK_RUN = 4096  # kRankRun of csrc/rules/bits.h


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
    _check_words(words, numel, f"a mask of shape {tuple(shape)}")
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    octets = words.contiguous().view(torch.uint8)
    bits = (octets.unsqueeze(1) >> shifts) & 1
    return bits.reshape(-1)[:numel].view(torch.bool).reshape(tuple(shape))


def count(words: Tensor) -> int:
    """Number of ones."""
    return int(_ones_of_words(words).sum())


def _ones_of_words(words: Tensor) -> Tensor:
    """How many bits of each word are 1, int64: counted in pairs, then fours, then octets."""
    ones = words.to(torch.int64) & 0xFFFFFFFF
    ones -= (ones >> 1) & 0x55555555
    ones = (ones & 0x33333333) + ((ones >> 2) & 0x33333333)
    ones = (ones + (ones >> 4)) & 0x0F0F0F0F
    return (ones * 0x01010101 >> 24) & 0xFF


# --- compact vectors: the values of the ones alone ------------------------------------------------


def ranks(words: Tensor, numel: int) -> Tensor:
    """Where a compact vector keeps its values: ones before each run of :data:`RANK_RUN` bits.

    ``words``: int32, of ``numel`` bits. Returns int64 ``[ceil(numel / RANK_RUN) + 1]`` on the same
    device; the last entry is the number of ones. Raises ValueError where the words are too few or
    too many.
    """
    _check_words(words, numel)
    runs = (numel + RANK_RUN - 1) // RANK_RUN
    ones = words.new_zeros(runs * RANK_RUN // WORD_BITS, dtype=torch.int64)
    ones[: words.numel()] = _ones_of_words(words)
    counts = words.new_zeros(runs + 1, dtype=torch.int64)
    torch.cumsum(ones.view(runs, RANK_RUN // WORD_BITS).sum(dim=1), 0, out=counts[1:])
    return counts


def compress(values: Tensor, words: Tensor) -> Tensor:
    """The values whose bit is 1, in their order: 1-D ``[number of ones]``.

    ``values``: 1-D, numbered as the bits are (:func:`in_memory_order` for words of memory order).
    """
    if values.dim() != 1:
        raise ValueError(
            f"bits.compress takes a vector, found shape {tuple(values.shape)}; pass "
            "bits.in_memory_order(tensor)"
        )
    return values[unpack(words, values.shape)]


def expand(compact: Tensor, words: Tensor, numel: int) -> Tensor:
    """Inverse of :func:`compress`: 1-D ``[numel]``, zero where the bit is 0.

    Raises ValueError where ``compact`` does not have one value for each 1.
    """
    mask = unpack(words, (numel,))
    if compact.shape != (count(words),):
        raise ValueError(
            f"the words have {count(words)} ones, found compact values of shape "
            f"{tuple(compact.shape)}; use the words that compressed them"
        )
    values = compact.new_zeros(numel)
    values[mask] = compact
    return values


# --- order and layout -----------------------------------------------------------------------------


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


def _check_words(words: Tensor, numel: int, mask: str = "") -> None:
    if words.numel() != word_count(numel):
        raise ValueError(
            f"{mask or f'a mask of {numel} bits'} has {word_count(numel)} words, found "
            f"{words.numel()}"
        )
