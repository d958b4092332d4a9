"""Several sets of inputs in turn, so that no call finds its data in a GPU's cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.case import Call, Case, Make, Size

_CACHES = 4  # how many times the cache all sets together exceed, by one fp32 array of each
_LEAST = 2


def rotating(make: Make, size: Size) -> Case:
    """A case of as many sets as the device's cache asks for; one on a CPU, whose arrays are meant
    to be large."""
    first = make(size)
    sets = sets_of(first.numel, size.device)
    cases = [first, *(make(size) for _ in range(sets - 1))]
    for case in cases:
        _make_state(case)
    return in_turn(cases)


def _make_state(case: Case) -> None:
    """Optimizers make their state, and peers their masks, at the first call."""
    case.ours()
    for peer in case.peers:
        if not peer.slow:
            peer.call()


def sets_of(numel: int, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return max(_LEAST, math.ceil(_CACHES * cache_of(device) / (4 * numel)))


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def in_turn(cases: Sequence[Case]) -> Case:
    """One case whose calls go through those of ``cases``."""
    peers = [
        replace(same[0], call=_cycle([peer.call for peer in same]))
        for same in zip(*(case.peers for case in cases), strict=True)
    ]
    return replace(cases[0], ours=_cycle([case.ours for case in cases]), peers=peers)


def _cycle(calls: Sequence[Call]) -> Call:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()
