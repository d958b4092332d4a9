"""The cases that ``python -m benchmarks --device cuda`` measures, run without memory to see what
each way asks of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks import (
    bench_accumulate,
    bench_masked_adam,
    bench_masked_sgd,
    bench_select,
    bench_soft_threshold,
)
from benchmarks.case import Case, Size
from benchmarks.cuda_static.traffic import Traffic, UnknownCost, traffic_of, without_memory

CASES = (
    bench_accumulate.case,
    bench_select.case,
    bench_masked_sgd.case,
    bench_masked_adam.case,
    bench_soft_threshold.case,
)
# At most, for 686 tensors: tests/cuda_on_cpu/test_launches.py holds the ops to it.
LAUNCHES = {"accumulate_": 3, "select": 16, "masked_sgd_": 6, "masked_adam_": 6,
            "soft_threshold_": 16}  # fmt: skip
REREADS = 3  # three passes find the threshold before one applies it (csrc/cuda/threshold.cuh)
# Bytes per fp32 weight that each of them reads: scores; weights and anchors.
REREAD_BYTES = {"select": 4, "soft_threshold_": 8}


@dataclass(frozen=True)
class Model:
    """SalUn's three settings. Of a network only the numbers of weights and tensors matter here."""

    name: str
    numel: int
    tensors: int

    @property
    def size(self) -> Size:
        return Size(self.numel, self.tensors, torch.device("cuda"))


MODELS = (
    Model("ResNet-18", 11_173_962, 62),
    Model("DDPM UNet", 38_600_000, 334),
    Model("Stable Diffusion UNet", 859_520_964, 686),
)


@dataclass(frozen=True)
class Way:
    """One way to do a case."""

    case: str
    name: str
    traffic: Traffic


def ways(model: Model) -> list[Way]:
    """Salun-fast first in each case, then the peers whose cost can be told without running."""
    with without_memory():
        return [way for make in CASES for way in _ways(make(model.size))]


def _ways(case: Case) -> Iterator[Way]:
    yield Way(case.name, "salun-fast", _ours(case))
    for peer in case.peers:
        try:
            traffic_of(peer.call)  # makes its state
            yield Way(case.name, peer.name, traffic_of(peer.call))
        except UnknownCost:
            continue


def _ours(case: Case) -> Traffic:
    op = case.name.split()[0]
    traffic = traffic_of(case.ours)
    again = REREADS * REREAD_BYTES.get(op, 0) * case.numel
    return replace(traffic, launches=LAUNCHES[op], moved=traffic.moved + again)
