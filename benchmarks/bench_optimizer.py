"""SalUnOptimizer.step on a full-width ResNet-18 (11,173,962 weights in 62 tensors)."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.case import Case, Peer, Size
from salun_fast import Saliency, SalUnOptimizer, models


def case(size: Size, kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> Case:
    """Of ``size`` only the device matters: the model has its own number of weights."""
    options: dict[str, Any] = {"lr": 1e-4, "weight_decay": 5e-4}
    if kind is torch.optim.SGD:
        options["momentum"] = 0.9
    ours_model, peer_model = (models.build("resnet18", 10).to(size.device) for _ in range(2))
    for param in [*ours_model.parameters(), *peer_model.parameters()]:
        param.grad = torch.randn_like(param) * 1e-2
    saliency = Saliency(ours_model)
    saliency.accumulate()
    mask = saliency.mask(0.5)
    ours = SalUnOptimizer(ours_model.named_parameters(), kind, mask=mask, **options)
    peer = kind(peer_model.parameters(), fused=True, **options)  # type: ignore[call-arg]
    floats = [
        mask[name].to(size.device, torch.float32) for name, _ in peer_model.named_parameters()
    ]
    grads = [param.grad for param in peer_model.parameters()]
    ours.step()  # checks once that the mask acts

    def multiply() -> None:
        torch._foreach_mul_(grads, floats)
        peer.step()

    return Case(
        f"SalUnOptimizer.step, ResNet-18, {kind.__name__}",
        ours.step,
        "one masked step of the whole model, Python included",
        [
            Peer(f"grad *= mask + {kind.__name__}(fused).step", multiply, "frozen weights leak"),
            Peer(f"{kind.__name__}(fused).step, no mask", peer.step, "does not mask at all"),
        ],
        sum(param.numel() for param in ours_model.parameters()),
    )


def adamw_case(size: Size) -> Case:
    return case(size, torch.optim.AdamW)


def test_sgd(timed):
    timed(case)


def test_adamw(timed):
    timed(adamw_case)
