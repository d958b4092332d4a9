"""SalUnOptimizer.step as a user calls it: a whole step of a model, and what Python adds to the
op."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.case import Case, Peer, Size
from benchmarks.sizes import RESNET18
from salun_fast import Saliency, SalUnOptimizer, ops

WEIGHTS_OF_OVERHEAD = 16  # per tensor: nothing for the op to do


def case(size: Size, kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> Case:
    options: dict[str, Any] = {"lr": 1e-4, "weight_decay": 5e-4}
    if kind is torch.optim.SGD:
        options["momentum"] = 0.9
    optimizer = _ours(size, kind, options)
    params = [torch.nn.Parameter(tensor) for tensor in size.rand(1)]
    for param, grad in zip(params, size.rand(2), strict=True):
        param.grad = grad
    mask = optimizer.mask
    floats = [mask[f"p{i}"].to(size.device, torch.float32) for i in range(len(params))]
    grads = [param.grad for param in params]
    peer = kind(params, fused=True, **options)  # type: ignore[call-arg]

    def multiply() -> None:
        torch._foreach_mul_(grads, floats)
        peer.step()

    name = kind.__name__
    return Case(
        f"SalUnOptimizer.step, {name}",
        optimizer.step,
        "one masked step of the whole model, Python included",
        [
            Peer(f"_foreach_mul_(grads, masks) + {name}(fused).step", multiply,
                 "frozen weights leak", keeps=4),
            Peer(f"{name}(fused).step, no mask", peer.step, "does not mask at all"),
        ],
        size.numel,
        keeps=0.125,
    )  # fmt: skip


def adamw_case(size: Size) -> Case:
    return case(size, torch.optim.AdamW)


def overhead_case(size: Size) -> Case:
    """Of tensors so small that only Python and the calls remain."""
    options = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = _ours(size, torch.optim.SGD, options)
    params, grads, buffers, steps = size.rand(1), size.rand(2), size.zeros(), size.steps()
    words, _ = ops.select(grads, size.k)
    plain = [torch.nn.Parameter(tensor) for tensor in size.rand(1)]
    for param, grad in zip(plain, grads, strict=True):
        param.grad = grad
    fused = torch.optim.SGD(plain, fused=True, **options)
    return Case(
        f"Python around the op, {size.tensors} tensors",
        optimizer.step,
        f"a step on {size.tensors} tensors of {size.each} weights, data in the caches",
        [
            Peer(
                "masked_sgd_ alone",
                lambda: ops.masked_sgd_(params, grads, buffers, steps, words, **options),
                "the op on lists made before",
                margin=50e-6 + 0.5e-6 * size.tensors,
            ),
            Peer("SGD(fused).step, no mask", fused.step, "torch's Python and op"),
        ],
        numel=0,
        cold=False,
    )


def _ours(size: Size, kind: type[torch.optim.Optimizer], options: Any) -> SalUnOptimizer:
    """After its first step, which checks once that the mask acts."""
    named = [(f"p{i}", torch.nn.Parameter(tensor)) for i, tensor in enumerate(size.rand(1))]
    for (_, param), grad in zip(named, size.rand(2), strict=True):
        param.grad = grad
    saliency = Saliency(named)
    saliency.accumulate()
    mask = saliency.mask(size.density)
    optimizer = SalUnOptimizer(named, kind, mask=mask, **options)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("make", [case, adamw_case], ids=["sgd", "adamw"])
def test_whole_step(claim, make):
    claim(make, RESNET18)


@pytest.mark.parametrize("tensors", [RESNET18.tensors, 686])
def test_overhead(claim, tensors):
    size = Size(WEIGHTS_OF_OVERHEAD * tensors, tensors, name=f"{tensors} tiny tensors")
    claim(overhead_case, size, rounds=200)
