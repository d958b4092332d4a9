"""select on scores that mislead a sample, above the length where one is taken: ties, few values,
order, subnormals, NaN, and a cut anywhere among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from salun_fast import ops, reference
from tests.conftest import same_bytes

LENGTH = (
    2**21 + 4321
)  # beyond csrc/cpu/threshold.cpp: kWorthSampling; no whole words, no whole chunks


@cache
def normal() -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(0))


def integers(below: int) -> Tensor:
    return torch.randint(below, (LENGTH,), generator=torch.Generator().manual_seed(1))


def spiked(share: float, value: float) -> Tensor:
    """Normal scores, ``share`` of them replaced by one value."""
    chosen = torch.rand(LENGTH, generator=torch.Generator().manual_seed(2)) < share
    return torch.where(chosen, torch.tensor(value), normal())


FAMILIES: dict[str, Callable[[], Tensor]] = {
    "all equal": lambda: torch.full((LENGTH,), -0.5),
    "two values": lambda: torch.where(normal() > 0, 1.0, -2.0),
    "ascending": lambda: torch.arange(float(LENGTH)),
    "descending": lambda: torch.arange(float(LENGTH), 0.0, -1.0),
    "1 % distinct": lambda: integers(LENGTH // 100).float(),
    "300 values": lambda: integers(300).float(),
    "subnormals": lambda: integers(1 << 23).int().view(torch.float32),
    "99 % zeros": lambda: spiked(0.99, 0.0),
    "a spike": lambda: spiked(0.3, 0.7),
    "a small spike": lambda: spiked(0.004, -0.7),
    "NaN and infinity": lambda: torch.where(
        normal() > 1, torch.tensor(float("nan")), spiked(0.1, float("inf"))
    ),
}
made = cache(lambda name: FAMILIES[name]())

# Where the cut falls: at these ranks, or among the ties of an element or of the commonest score.
RANKS = {"first": 1, "few": LENGTH // 10_000, "half": LENGTH // 2, "all but one": LENGTH - 1}
TIES = {"the first": 1e-9, "halfway": 0.5, "the last": 1.0}


@cache
def commonest(family: str) -> int:
    values, counts = reference.ordered_keys(made(family), True).unique(return_counts=True)
    common = values[counts.argmax()]
    return int((reference.ordered_keys(made(family), True) == common).nonzero()[0])


def rank(cut: str, scores: Tensor, element: int, largest: bool) -> int:
    if cut in RANKS:
        return RANKS[cut]
    keys = reference.ordered_keys(scores, largest)
    here = keys[element]
    ties = int((keys == here).sum())
    return int((keys > here).sum()) + math.ceil(ties * TIES[cut])


@pytest.mark.cpu_only  # the emulated kernels take no sample
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    cut=st.sampled_from([*RANKS, *TIES]),
    element=st.none() | st.integers(0, LENGTH - 1),
    largest=st.booleans(),
    parts=st.lists(st.integers(0, LENGTH), max_size=4),
)
@example("a spike", "the first", None, True, [])
@example("a small spike", "the last", None, True, [5])
@example("99 % zeros", "halfway", None, True, [LENGTH])
@example("two values", "the last", None, False, [40, 40])
@example("a small spike", "halfway", None, False, [])
@example("NaN and infinity", "all but one", None, False, [])
@settings(max_examples=12, deadline=None)
def test_adversarial_scores_give_the_bits_of_the_oracle(family, cut, element, largest, parts):
    flat = made(family)
    k = rank(cut, flat, commonest(family) if element is None else element, largest)
    scores = list(torch.tensor_split(flat, sorted(parts)))
    masks, threshold = ops.select(scores, k, largest=largest, allow_nonfinite=True)
    oracle, oracle_threshold = reference.select(scores, k, largest, True)
    assert all(same_bytes(a, b) for a, b in zip(masks, oracle, strict=True))
    assert same_bytes(threshold, oracle_threshold)
