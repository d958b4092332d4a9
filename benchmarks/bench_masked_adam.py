"""masked_adam_ and masked AdamW: the step under a mask, against torch's steps with a mask's work
added."""

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
    replace(DDPM, dtype=torch.float16),
    SD,
]


def case(size: Size, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> Case:
    params, grads, m, v = size.rand(1), size.rand(2), size.zeros(), size.zeros()
    steps = size.steps()
    masks, _ = ops.select(grads, size.k)
    options = {"lr": 1e-4, "weight_decay": 1e-2}
    decoupled = kind is torch.optim.AdamW
    state = {"exp_avg": m, "exp_avg_sq": v}
    torchs = MaskedByTorch(size, params, grads, masks, kind, state, **options)
    return Case(
        f"masked_adam_ ({kind.__name__})",
        lambda: ops.masked_adam_(
            params, grads, m, v, [], steps, masks, decoupled=decoupled, **options
        ),
        "reads gradient, weight, both moments and bits, writes all but the gradient",
        step_peers(torchs, size, target=2),
        size.numel,
        bytes=16.125 + 3 * size.dtype.itemsize,
        ceiling=0.8,
        keeps=0.125,
    )


def adam_case(size: Size) -> Case:
    return case(size, torch.optim.Adam)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masked_adamw(claim, size):
    claim(case, size, needs=16.2)


def test_masked_adam(claim):
    claim(adam_case, RESNET18)
