"""accumulate_ against torch's own list addition, which does the same work."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Peer, Size
from salun_fast import ops


def case(size: Size) -> Case:
    scores, grads = size.zeros(), size.rand(1)
    return Case(
        "accumulate_",
        lambda: ops.accumulate_(scores, grads),
        "reads gradient and score, writes score",
        [Peer("torch._foreach_add_", lambda: torch._foreach_add_(scores, grads), "the same")],
        size.numel,
        bytes=12,
        ceiling=0.8,
    )


def test_accumulate(timed):
    timed(case)
