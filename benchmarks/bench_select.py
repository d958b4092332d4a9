"""select: threshold and packed masks of exactly k bits, against ways that sort or concatenate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.case import Case, Peer, Size
from benchmarks.sizes import DDPM, RESNET18, SD
from salun_fast import ops

LARGE = 10**8  # weights from which the targets against sorts are meant
SIZES = [
    RESNET18,
    replace(RESNET18, density=0.1),
    replace(RESNET18, density=0.9),
    replace(RESNET18, dtype=torch.bfloat16),
    DDPM,
    SD,
]


def case(size: Size) -> Case:
    scores, k = size.rand(1), size.k

    def flat() -> torch.Tensor:
        return torch.cat([score.abs().flatten() for score in scores])

    def double_argsort() -> object:
        """The reference: ranks of all scores, and an int64 mask per tensor."""
        ranks = torch.argsort(torch.argsort(-flat()))
        chosen = torch.where(ranks < k, 1, 0)
        return torch.split(chosen, [score.numel() for score in scores])

    def kthvalue() -> object:
        magnitudes = flat()
        return magnitudes >= magnitudes.kthvalue(magnitudes.numel() - k + 1).values

    def topk() -> object:
        magnitudes = flat()
        chosen = torch.zeros_like(magnitudes, dtype=torch.bool)
        chosen[magnitudes.topk(k, sorted=False).indices] = True
        return chosen

    def partition() -> object:
        magnitudes = flat().float().numpy()
        cut = magnitudes.size - k
        return torch.from_numpy(magnitudes >= np.partition(magnitudes, cut)[cut])

    weight = size.dtype.itemsize
    sort, many = "SalUn's code; int64 masks", "bool mask, too many bits at ties"
    argsort_target, kthvalue_target = (200, 15) if size.numel >= LARGE else (None, None)
    peers = [
        Peer("double argsort", double_argsort, sort, argsort_target, slow=True, needs=40),
        Peer("torch.kthvalue", kthvalue, many, kthvalue_target, slow=True, needs=3 * weight + 9),
        Peer("torch.topk", topk, "bool mask, arbitrary ties", slow=True, needs=weight + 25),
    ]
    if size.device.type == "cpu":
        peers.append(Peer("numpy.partition", partition, many, slow=True, needs=13))
    return Case(
        "select",
        lambda: ops.select(scores, k),
        "reads the scores twice, writes packed masks of exactly k bits",
        peers,
        size.numel,
        bytes=2 * weight + 0.125,
        memory=size.numel / 8 + 0.05 * weight * size.numel,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_select(claim, size):
    claim(case, size, needs=4.5)
