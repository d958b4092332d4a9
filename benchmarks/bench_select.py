"""select: threshold and packed masks of exactly k bits, against ways that sort or concatenate; on
scores that mislead a sample or crowd the cut, against itself on normal ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.case import Case, Peer, Size
from benchmarks.sizes import DDPM, RESNET18, SD
from salun_fast import ops

LARGE = 10**8  # weights from which the targets against sorts and of memory are meant
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

    def flat() -> Tensor:
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
        "reads the scores once, writes packed masks of exactly k bits",
        peers,
        size.numel,
        bytes=weight + 0.125,
        memory=size.numel / 8 + 0.01 * weight * size.numel if size.numel >= LARGE else None,
    )


# Made from normal scores and the position in the list.
FAMILIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all equal": lambda s, _: torch.full_like(s, 0.5),
    "two values": lambda s, _: torch.where(s > 0, 1.0, 2.0),
    "ascending": lambda s, i: i + torch.arange(s.numel(), device=s.device) / s.numel(),
    "1 % distinct": lambda s, _: _distinct(s, s.numel() // 100 + 1),
    "subnormal": lambda s, _: s * 1e-39,
    "99 % zeros": lambda s, _: torch.where(s.abs() > 2.5758, s, 0.0),
    "ties at the cut": lambda s, _: torch.where((s.abs() - 0.6745).abs() < 0.1, 0.6745, s),
}


def _distinct(like: Tensor, values: int) -> Tensor:
    return torch.arange(like.numel(), device=like.device).mul_(7919).remainder_(values).float()


def family_case(size: Size, name: str) -> Case:
    """Its peer is select itself on normal scores."""
    normal = size.rand(1)
    scores = [FAMILIES[name](score, index) for index, score in enumerate(normal)]
    easy = Peer("select, normal scores", lambda: ops.select(normal, size.k), "the same op", 1 / 3)
    work = "as on normal scores; ties may ask for parts of a second read"
    return Case(f"select, {name}", lambda: ops.select(scores, size.k), work, [easy], size.numel)


@pytest.mark.parametrize("name", FAMILIES)
def test_select_misled(claim, name):
    claim(lambda size: family_case(size, name), DDPM)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_select(claim, size):
    claim(case, size, needs=4.5)
