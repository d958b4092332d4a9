"""accumulate_: gradients into scores, against torch's own list addition, which does the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case, Peer, Size
from benchmarks.sizes import DDPM, RESNET18, SD
from salun_fast import ops

SIZES = [
    replace(model, dtype=dtype, density=None)
    for model, dtype in [
        (RESNET18, torch.float32),
        (DDPM, torch.float32),
        (SD, torch.float32),
        (RESNET18, torch.bfloat16),
        (DDPM, torch.bfloat16),
        (DDPM, torch.float16),
    ]
]


def case(size: Size) -> Case:
    scores, grads = size.zeros(), size.rand(1)

    def one_by_one() -> None:
        for score, grad in zip(scores, grads, strict=True):
            score += grad

    return Case(
        "accumulate_",
        lambda: ops.accumulate_(scores, grads),
        "reads gradient and score, writes score",
        [
            Peer("torch._foreach_add_", lambda: torch._foreach_add_(scores, grads), "the same"),
            Peer("score += grad, one by one", one_by_one, "the same; SalUn's code"),
        ],
        size.numel,
        bytes=8 + size.dtype.itemsize,
        ceiling=0.8,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accumulate(claim, size):
    claim(case, size, needs=12)
