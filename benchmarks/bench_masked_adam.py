"""masked_adam_ as AdamW, at density 0.5."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Size
from benchmarks.peers import MaskedByTorch, step_peers
from salun_fast import ops


def case(size: Size) -> Case:
    params, grads, m, v = size.rand(1), size.rand(2), size.zeros(), size.zeros()
    steps = size.steps()
    masks, _ = ops.select(grads, size.numel // 2)
    options = {"lr": 1e-4, "weight_decay": 1e-2}
    return Case(
        "masked_adam_ (AdamW)",
        lambda: ops.masked_adam_(params, grads, m, v, [], steps, masks, decoupled=True, **options),
        "reads gradient, weight, both moments and bits, writes all but the gradient",
        step_peers(MaskedByTorch(size, masks, torch.optim.AdamW, **options), size.device, target=2),
        size.numel,
        bytes=28.125,
        ceiling=0.8,
    )


def test_masked_adam(timed):
    timed(case)
