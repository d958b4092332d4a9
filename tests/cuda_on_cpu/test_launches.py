"""How often an op talks to the device: a list of any length is a few launches, and a step never
waits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from salun_fast import ops
from tests.cuda_on_cpu import build
from tests.ops import backends
from tests.ops.steps import CASES, Problem


@pytest.fixture
def library() -> Iterator[Path]:
    if reason := build.unavailable():
        pytest.skip(reason)
    path = backends.emulated_library(None)
    with backends.in_place_of_cpu("cuda_on_cpu"):
        yield path


def _counted(library: Path, call: Callable[[], object]) -> tuple[int, int]:
    """Launches and synchronisations of one call."""
    emulator = ctypes.CDLL(str(library))
    counters = (emulator.cuda_on_cpu_launches, emulator.cuda_on_cpu_synchronizations)
    for counter in counters:
        counter.restype = ctypes.c_int64
    before = [counter() for counter in counters]
    call()
    launches, waits = (counter() - old for counter, old in zip(counters, before, strict=True))
    return launches, waits


def _list(count: int) -> list[Tensor]:
    return [torch.randn(50 + i % 7) for i in range(count)]


def _step(name: str, count: int) -> Callable[[], object]:
    params, case = _list(count), CASES[name]
    states = [[torch.zeros_like(p) for p in params] for _ in range(case.states)]
    masks = [torch.empty(0, dtype=torch.int32) for _ in params]
    problem = Problem(params, masks, states, [torch.tensor(0.0) for _ in params])
    return lambda: case.op(problem, _list_like(params))


def _list_like(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.randn_like(tensor) for tensor in tensors]


@pytest.mark.parametrize("name", ["sgd-paper", "adam-adamw-amsgrad"])
def test_a_step_is_a_handful_of_launches_and_never_waits(library, name):
    few, waits_for_few = _counted(library, _step(name, 3))
    many, waits_for_many = _counted(library, _step(name, 686))  # a Stable Diffusion UNet
    assert few <= 3
    assert many <= 6
    assert (waits_for_few, waits_for_many) == (0, 0)


def test_accumulating_is_a_handful_of_launches_and_never_waits(library):
    scores = _list(686)
    launches, waits = _counted(library, lambda: ops.accumulate_(scores, _list_like(scores)))
    assert launches <= 3
    assert waits == 0


def test_a_selection_waits_once_at_most(library):
    scores = _list(686)
    launches, waits = _counted(library, lambda: ops.select(scores, 1000))
    assert launches <= 16
    assert waits <= 1
    _, waits = _counted(library, lambda: ops.select(scores, 1000, allow_nonfinite=True))
    assert waits == 0


def test_a_soft_threshold_is_a_handful_of_launches_and_never_waits(library):
    params, anchors = _list(686), _list(686)
    launches, waits = _counted(library, lambda: ops.soft_threshold_(params, anchors, 1000))
    assert launches <= 16
    assert waits <= 1


def test_the_cpu_kernels_are_back_where_no_backend_takes_their_place():
    if reason := build.unavailable():
        pytest.skip(reason)
    path = backends.emulated_library(None)
    scores = _list(3)
    with backends.in_place_of_cpu("cuda_on_cpu"):
        emulated, _ = _counted(path, lambda: ops.accumulate_(scores, _list_like(scores)))
    native, _ = _counted(path, lambda: ops.accumulate_(scores, _list_like(scores)))
    assert emulated > 0
    assert native == 0
