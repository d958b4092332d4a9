"""masked_sgd_ with momentum and decay, against torch's steps with a mask's work added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case, Size
from benchmarks.peers import MaskedByTorch, step_peers
from benchmarks.sizes import DDPM, RESNET18, SD
from salun_fast import ops

SIZES = [
    RESNET18,
    replace(RESNET18, density=0.1),
    replace(RESNET18, density=0.9),
    replace(RESNET18, dtype=torch.bfloat16),
    DDPM,
    SD,
]


def case(size: Size) -> Case:
    params, grads, buffers, steps = size.rand(1), size.rand(2), size.zeros(), size.steps()
    masks, _ = ops.select(grads, size.k)
    options = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    state = {"momentum_buffer": buffers}
    torchs = MaskedByTorch(size, params, grads, masks, torch.optim.SGD, state, **options)
    return Case(
        "masked_sgd_ (momentum)",
        lambda: ops.masked_sgd_(params, grads, buffers, steps, masks, **options),
        "reads gradient, weight, momentum and bits, writes weight and momentum",
        step_peers(torchs, size, target=3),
        size.numel,
        bytes=8.125 + 3 * size.dtype.itemsize,
        ceiling=0.8,
        keeps=0.125,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masked_sgd(claim, size):
    claim(case, size, needs=12.2)
