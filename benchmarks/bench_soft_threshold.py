"""soft_threshold_, which SalUn-soft takes after every step."""

from __future__ import annotations

import itertools

import torch

from benchmarks.case import Case, Peer, Size
from salun_fast import ops


def case(size: Size) -> Case:
    params, k = size.rand(1), size.numel // 2
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
        "soft_threshold_ (k = N/2)",
        lambda: ops.soft_threshold_(params, next(turns), k),
        "reads weights and anchors twice, writes weights",
        [Peer("torch.kthvalue + elementwise torch", plain, "the same, with copies", slow=True)],
        size.numel,
        bytes=20,
        ceiling=0.75,
    )


def test_soft_threshold(timed):
    timed(case)
