"""Compact state: AdamW's moments of the selected weights alone, against dense moments. Its memory
column counts the moments, which the other tables leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case, Peer, Size
from benchmarks.peers import LEAKS, MaskedByTorch
from benchmarks.sizes import DDPM
from salun_fast import bits, ops

SIZES = [replace(DDPM, density=density) for density in (0.1, 0.3, 0.5, 0.7, 0.9)]
FASTER_THAN_DENSE = {0.1: 1.5, 0.5: 1 / 1.02}  # no slower, to what a clock can tell
OVERHEAD = 1.05  # of the memory: the ranks that tell where each run of weights has its moments


def case(size: Size) -> Case:
    assert size.density is not None
    params, grads, steps = size.rand(1), size.rand(2), size.steps()
    words, _ = ops.select(grads, size.k)
    dense = size.zeros(), size.zeros()
    compact = [[bits.compress(m, w) for m, w in zip(each, words, strict=True)] for each in dense]
    ranks = [bits.ranks(w, count) for w, count in zip(words, size.numels, strict=True)]
    options = {"lr": 1e-4, "weight_decay": 1e-2}
    state = {"exp_avg": dense[0], "exp_avg_sq": dense[1]}
    torchs = MaskedByTorch(size, params, grads, words, torch.optim.AdamW, state, **options)

    def step_dense() -> None:
        ops.masked_adam_(params, grads, *dense, [], steps, words, decoupled=True, **options)

    def step_compact() -> None:
        ops.masked_adam_(
            params, grads, *compact, [], steps, words, ranks=ranks, decoupled=True, **options
        )

    return Case(
        "compact state (AdamW)",
        step_compact,
        "the same step to the bit, moments of selected weights only",
        [
            Peer("dense state", step_dense, "masked_adam_ on moments of every weight",
                 FASTER_THAN_DENSE.get(size.density), keeps=8, memory=OVERHEAD * size.density),
            Peer("grad *= mask (bool) + AdamW(fused)", torchs.multiplied(torch.bool, "fused"),
                 LEAKS, keeps=9, needs=2),
            Peer("AdamW(fused), no mask", torchs.plain("fused"), "does not mask at all", keeps=8),
        ],
        size.numel,
        bytes=12.125 + 16 * size.density,
        keeps=(_bytes(compact[0]) + _bytes(compact[1]) + _bytes(ranks)) / size.numel,
    )  # fmt: skip


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compact_state(claim, size):
    claim(case, size, needs=25)
