"""masked_adam_ as AdamW with state of the selected weights alone, at densities 0.5 and 0.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Peer, Size
from benchmarks.peers import LEAKS, MaskedByTorch
from salun_fast import bits, ops


def case(size: Size) -> Case:
    return _adamw(size, density=0.5, target=1)


def sparse_case(size: Size) -> Case:
    return _adamw(size, density=0.1, target=1.5)


def _adamw(size: Size, density: float, target: float) -> Case:
    params, grads = size.rand(1), size.rand(2)
    masks, _ = ops.select(grads, round(size.numel * density))
    ranks = [bits.ranks(words, size.each) for words in masks]
    kept = [bits.count(words) for words in masks]
    compact = [[torch.full((n,), 0.0, device=size.device) for n in kept] for _ in range(2)]
    dense = [size.zeros(), size.zeros()]
    options: dict[str, Any] = {"lr": 1e-4, "weight_decay": 1e-2}
    torchs = MaskedByTorch(size, masks, torch.optim.AdamW, **options)
    steps = size.steps()

    def step(states: list[list[Tensor]], places: list[Tensor]) -> None:
        ops.masked_adam_(
            params, grads, *states, [], steps, masks, ranks=places, decoupled=True, **options
        )

    return Case(
        f"masked_adam_ (AdamW), compact state, density {density}",
        lambda: step(compact, ranks),
        "reads gradient, weight and bits, writes the weight; both moments of selected weights only",
        [
            Peer("masked_adam_ (AdamW), dense state", lambda: step(dense, []), "", target),
            Peer(
                "grad *= mask (bool) + AdamW(fused)",
                torchs.multiplied(torch.bool, "fused"),
                LEAKS,
            ),
            Peer("AdamW(fused), no mask", torchs.plain("fused"), "does not mask at all"),
        ],
        size.numel,
        bytes=12.125 + 16 * density,
    )


def test_compact_state(timed):
    timed(case)


def test_compact_state_of_a_tenth(timed):
    timed(sparse_case)
