"""How far the results of the ways lie apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.whole_run import subject
from benchmarks.whole_run.phases import REFERENCE
from benchmarks.whole_run.subject import Settings
from salun_fast import SaliencyMask
from salun_fast.evaluation.accuracy import outputs

Tensors = dict[str, Tensor]


class Agreement(NamedTuple):
    """One way beside the reference. mask: bits that differ, of how many. apart: root mean square
    of the difference of the weights, over that of the reference's change. ua, ra, ta: percent."""

    way: str
    mask: int
    of: int
    apart: float
    ua: float
    ra: float
    ta: float


def compare(settings: Settings, way: str) -> Agreement:
    torch.set_num_threads(settings.threads)
    mask, expected = _mask(settings, way), _mask(settings, REFERENCE)
    model, images = subject.model(settings, way), subject.task(settings)
    start, end = (
        dict(subject.model(settings, name).named_parameters()) for name in ("original", REFERENCE)
    )
    own = dict(model.named_parameters())
    sets = (images.forget, images.retain.head(settings.judged, seed=0), images.test)
    model.to(memory_format=torch.channels_last)
    ua, ra, ta = (outputs(model, data).accuracy for data in sets)
    return Agreement(
        way,
        sum(int((mask[name] != expected[name]).sum()) for name in expected),
        sum(bits.numel() for bits in expected.values()),
        _distance(own, end) / _distance(start, end),
        100.0 - ua,
        ra,
        ta,
    )


def _mask(settings: Settings, way: str) -> Tensors:
    """bool, by parameter."""
    folder = settings.masks(way)
    if way == REFERENCE:
        return {name: m == 1 for name, m in torch.load(folder / f"{settings.density}.pt").items()}
    mask = SaliencyMask.load(folder / f"{settings.density}.safetensors")
    return {name: mask[name] for name in mask.names}


@torch.no_grad()
def _distance(left: Tensors, right: Tensors) -> float:
    return float(sum((left[n] - right[n]).double().square().sum() for n in left) ** 0.5)
