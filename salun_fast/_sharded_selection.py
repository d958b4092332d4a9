"""Exact top-k of scores that lie on several processes, by sums of small histograms.

The ordered keys are counted digit by digit, as within one process (``csrc/rules/ordered_key.h``):
three histograms fix the k-th key. Where only some of its ties are wanted, the parameter that the
cut falls into is found by counting, and the cut's flat index by digits again. No score moves.

The algorithm is a generator: it yields int64 tensors that whoever drives it must add up, in place,
over all processes. So it runs on any group, and on thousands of simulated ones.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from salun_fast import ops, reference
from salun_fast._score_sums import peak
from salun_fast._shards import Block

# Numbers in one sum: 64 KiB of int64.
_MOST = 8192
_INDEX_BITS = 13  # a digit of a flat index: 8192 bins

Sums = Generator[Tensor, None, None]


class Part(NamedTuple):
    """What this process holds of one parameter: fp32 scores [block.sizes]."""

    name: str
    scores: Tensor
    block: Block


class Cut(NamedTuple):
    """key: of the k-th score (``csrc/rules/ordered_key.h``). wanted of equal: how many of the
    scores that tie with it belong to the k, and how many there are, over all processes."""

    key: int
    wanted: int
    equal: int


def find_cut(parts: Sequence[Part], k: int, largest: bool) -> Generator[Tensor, None, Cut]:
    """The k-th of all scores; k >= 1."""
    counted = [part.scores for part in parts if part.block.counted]
    key, wanted, equal = 0, k, 0
    for level, (digit_shift, prefix_shift) in enumerate(reference.HISTOGRAM_LEVELS):
        counts = ops.select_histogram(counted, key, level, largest=largest).to(_home(parts))
        yield counts
        digit, wanted = _descend(counts, wanted)
        equal = int(counts[digit])
        key = digit if level == 0 else key << (prefix_shift - digit_shift) | digit
    return Cut(key, wanted, equal)


def pack(parts: Sequence[Part], cut: Cut, largest: bool) -> Generator[Tensor, None, list[Tensor]]:
    """Words of the blocks: all scores above the cut and, by flat index, its first ties."""
    scores = [part.scores for part in parts]
    if cut.wanted == cut.equal:  # nearly always
        return ops.select_pack(scores, cut.key, cut.equal, largest=largest)
    ties = yield from _first_ties(parts, cut, largest)
    return [
        ops.select_pack([part], cut.key, mine, largest=largest)[0]
        for part, mine in zip(scores, ties, strict=True)
    ]


def magnitude(cut: Cut, largest: bool) -> Tensor:
    """The k-th |score|, 0-dim fp32."""
    return reference.key_to_magnitude(cut.key, largest)


def refuse_nonfinite(parts: Sequence[Part]) -> Sums:
    """Raise ValueError, on every process, naming the first parameter with NaN or infinity."""
    bad = ~torch.stack([peak(part.scores) for part in parts]).isfinite()
    some = bad.any().long().reshape(1)
    yield some
    if not int(some):
        return
    counts = bad.long()
    yield from _pieces(counts)
    name = parts[int(counts.nonzero()[0])].name
    raise ValueError(
        f"scores: '{name}' holds NaN or infinity; find the batch that made it, or pass finite "
        "values"
    )


# --- ties -----------------------------------------------------------------------------------------


def _first_ties(
    parts: Sequence[Part], cut: Cut, largest: bool
) -> Generator[Tensor, None, list[int]]:
    """How many of its ties each block keeps."""
    mine = [_tie_count(part, cut.key, largest) for part in parts]
    everyone = torch.tensor(
        [count if part.block.counted else 0 for part, count in zip(parts, mine, strict=True)],
        device=_home(parts),
    )
    yield from _pieces(everyone)
    reached = everyone.cumsum(0)
    split = int((reached < cut.wanted).sum())  # the parameter that the cut falls into
    before = int(reached[split] - everyone[split])
    kept = yield from _ties_within(parts[split], cut, cut.wanted - before, largest)
    return [*mine[:split], kept, *([0] * (len(parts) - split - 1))]


def _ties_within(part: Part, cut: Cut, wanted: int, largest: bool) -> Generator[Tensor, None, int]:
    """How many ties of this block are among the first ``wanted`` of its parameter."""
    equal = reference.ordered_keys(part.scores, largest) == cut.key
    places = part.block.flat_indices(equal.nonzero().squeeze(1))
    last = 0
    for shift in _digit_shifts(part.block.numel):
        found = places[places >> (shift + _INDEX_BITS) == last]
        digits = (found >> shift) & (_MOST - 1)
        counts = torch.bincount(digits if part.block.counted else digits[:0], minlength=_MOST)
        yield counts
        digit, wanted = _ascend(counts, wanted)
        last = last << _INDEX_BITS | digit
    return int((places <= last).sum())


def _digit_shifts(numel: int) -> Iterator[int]:
    """Of the digits of flat indices below ``numel``, highest first."""
    digits = max(1, -(-(numel - 1).bit_length() // _INDEX_BITS))
    return iter(range((digits - 1) * _INDEX_BITS, -1, -_INDEX_BITS))


def _tie_count(part: Part, key: int, largest: bool) -> int:
    level = len(reference.HISTOGRAM_LEVELS) - 1
    prefix = key >> reference.HISTOGRAM_LEVELS[level][1]
    counts = ops.select_histogram([part.scores], prefix, level, largest=largest)
    return int(counts[key & ((1 << reference.HISTOGRAM_LEVELS[level][1]) - 1)])


# --- histograms -----------------------------------------------------------------------------------


def _descend(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The digit that holds the ``wanted``-th entry from the top, and its rank among equals."""
    digit, rank = _ascend(counts.flip(0), wanted)
    return counts.numel() - 1 - digit, rank


def _ascend(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The digit that holds the ``wanted``-th entry from the bottom, and its rank among equals."""
    reached = counts.cumsum(0)
    digit = int((reached < wanted).sum())
    return digit, wanted - int(reached[digit] - counts[digit])


def _pieces(numbers: Tensor) -> Iterator[Tensor]:
    """Views short enough for one sum each."""
    return (numbers[begin : begin + _MOST] for begin in range(0, len(numbers), _MOST))


def _home(parts: Sequence[Part]) -> torch.device:
    return parts[0].scores.device
