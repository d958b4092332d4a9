"""masked_adam_ as AdamW, at density 0.5."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Size
from benchmarks.peers import masked_by_torch, step_peers
from salun_fast import ops


def case(size: Size) -> Case:
    params, grads, m, v = size.rand(1), size.rand(2), size.zeros(), size.zeros()
    steps = [torch.tensor(0.0) for _ in params]
    masks, _ = ops.select(grads, size.numel // 2)
    options = {"lr": 1e-4, "weight_decay": 1e-2}
    pick = masked_by_torch(size, masks, lambda p: torch.optim.AdamW(p, fused=True, **options))
    return Case(
        "masked_adam_ (AdamW)",
        lambda: ops.masked_adam_(params, grads, m, v, [], steps, masks, decoupled=True, **options),
        "reads gradient, weight, both moments and bits, writes all but the gradient",
        step_peers("AdamW", pick, target=2),
        bytes=28.125,
        ceiling=0.8,
    )


def test_masked_adam(timed):
    timed(case)
