"""masked_sgd_ with momentum and decay, at density 0.5."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Size
from benchmarks.peers import MaskedByTorch, step_peers
from salun_fast import ops


def case(size: Size) -> Case:
    params, grads, buffers, steps = size.rand(1), size.rand(2), size.zeros(), size.steps()
    masks, _ = ops.select(grads, size.numel // 2)
    options = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    return Case(
        "masked_sgd_ (momentum)",
        lambda: ops.masked_sgd_(params, grads, buffers, steps, masks, **options),
        "reads gradient, weight, momentum and bits, writes weight and momentum",
        step_peers(MaskedByTorch(size, masks, torch.optim.SGD, **options), size.device, target=3),
        size.numel,
        bytes=20.125,
        ceiling=0.8,
    )


def test_masked_sgd(timed):
    timed(case)
