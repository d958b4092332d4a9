"""How others step under a mask: all leave weight decay and momentum leaking into frozen weights,
but for the one that puts them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Peer, Size
from salun_fast import bits

LEAKS = "frozen weights leak by decay and momentum"


def masked_by_torch(
    size: Size, masks: list[Tensor], make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> Callable[[str], Any]:
    """Peers around one torch optimizer with its own parameters, sharing its state."""
    params = [torch.nn.Parameter(p) for p in size.rand(1)]
    for param, grad in zip(params, size.rand(2), strict=True):
        param.grad = grad
    optimizer = make(params)
    grads = [param.grad for param in params]
    each = size.numel // size.tensors
    bools = [bits.unpack(words, (each,)) for words in masks]
    made: dict[str, list[Tensor]] = {}

    def kept(kind: str, build: Callable[[], list[Tensor]]) -> list[Tensor]:
        if kind not in made:
            made[kind] = build()
        return made[kind]

    def multiply(kind: str, cast: Callable[[Tensor], Tensor]) -> None:
        masks_of_kind = kept(kind, lambda: [cast(m) for m in bools])
        for grad, mask in zip(grads, masks_of_kind, strict=True):
            grad *= mask
        optimizer.step()

    def restore() -> None:
        originals = kept("originals", lambda: [p.detach().clone() for p in params])
        optimizer.step()
        with torch.no_grad():
            for param, mask, original in zip(params, bools, originals, strict=True):
                param.copy_(torch.where(mask, param, original))

    calls = {
        "bool": lambda: multiply("bool", lambda m: m),
        "float": lambda: multiply("float", lambda m: m.float()),
        "int64": lambda: multiply("int64", lambda m: m.long()),
        "restore": restore,
        "plain": optimizer.step,
    }
    return calls.__getitem__


def step_peers(name: str, pick: Callable[[str], Any], target: float) -> list[Peer]:
    return [
        Peer(f"grad *= mask (bool) + {name}(fused)", pick("bool"), LEAKS, target),
        Peer(f"grad *= mask (float) + {name}(fused)", pick("float"), LEAKS, target),
        Peer(f"grad *= mask (int64) + {name}(fused)", pick("int64"), f"{LEAKS}; SalUn's code"),
        Peer(
            f"{name}(fused) + restore by torch.where", pick("restore"), "exact weights; state leaks"
        ),
        Peer(f"{name}(fused), no mask", pick("plain"), "does not mask at all"),
    ]
