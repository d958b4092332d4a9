"""Bytes of device memory that each op moves per weight, next to the least that its work needs:
every input read once, every result written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda_static.sequences import REREADS
from benchmarks.cuda_static.traffic import empty, traffic_of, without_memory
from salun_fast import ops

_NUMEL = 2**20
_FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Footprint:
    """bytes per weight; reread: of them, what is read again."""

    op: str
    dtype: str
    least: float
    reread: float

    @property
    def moved(self) -> float:
        return self.least + self.reread


def footprints() -> list[Footprint]:
    """Weights and gradients in each dtype; scores and optimizer state are always fp32."""
    with without_memory():
        return [
            Footprint(op, dtype, _least(call), reread * REREADS)
            for dtype, format_ in _FORMATS.items()
            for op, call, reread in _calls(format_)
        ]


def _least(call: Callable[[], object]) -> float:
    return traffic_of(call).moved / _NUMEL


def _calls(dtype: torch.dtype) -> list[tuple[str, Callable[[], object], int]]:
    """Op, call, and the bytes per weight that each further pass reads."""
    words, step = _list(torch.int32, _NUMEL // 32), [torch.empty((), device="cuda")]
    weights, grads = _list(dtype), _list(dtype)
    state = [_list(torch.float32) for _ in range(3)]
    sgd: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("accumulate_", partial(ops.accumulate_, state[0], grads), 0),
        ("masked_sgd_", partial(ops.masked_sgd_, weights, grads, state[0], step, words, **sgd), 0),
        (
            "masked_adam_",
            partial(ops.masked_adam_, weights, grads, *state[:2], [], step, words, lr=0.1),
            0,
        ),
        (
            "masked_adam_ (amsgrad)",
            partial(ops.masked_adam_, weights, grads, *state, step, words, lr=0.1),
            0,
        ),
        ("select", partial(ops.select, weights, _NUMEL // 2), dtype.itemsize),
        (
            "soft_threshold_",
            partial(ops.soft_threshold_, weights, grads, _NUMEL // 2),
            2 * dtype.itemsize,
        ),
    ]
    return calls


def _list(dtype: torch.dtype, numel: int = _NUMEL) -> list[Tensor]:
    return empty([torch.Size([numel])], dtype)
