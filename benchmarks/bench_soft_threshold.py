"""soft_threshold_: SalUn-soft's selection and proximal step, taken after every step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case, Peer, Size
from benchmarks.sizes import DDPM, RESNET18
from salun_fast import ops

SIZES = [RESNET18, replace(RESNET18, density=0.1), replace(RESNET18, density=0.9), DDPM]


def case(size: Size) -> Case:
    """A share of ``density`` of the weights moves; the others are pulled home."""
    params, k = size.rand(1), size.numel - size.k
    # In turn, so that no call finds weights which the last one has already pulled home.
    turns = itertools.cycle((size.rand(2), size.rand(3)))

    def plain() -> object:
        anchors = next(turns)
        deltas = [p - a for p, a in zip(params, anchors, strict=True)]
        tau = torch.cat(deltas).abs().kthvalue(k).values
        for param, anchor, delta in zip(params, anchors, deltas, strict=True):
            shrunk = anchor + delta.sign() * (delta.abs() - tau).clamp(min=0)
            param.copy_(shrunk)
        return tau

    return Case(
        "soft_threshold_",
        lambda: ops.soft_threshold_(params, next(turns), k),
        "reads weights and anchors twice, writes weights",
        [Peer("torch.kthvalue + elementwise torch", plain, "the same, with copies", slow=True,
              needs=24)],
        size.numel,
        bytes=20,
        ceiling=0.75,
    )  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_soft_threshold(claim, size):
    claim(case, size, needs=12)
