"""Declarative cases and the one runner of the optimizer tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import awkward_tensors

optim = torch.optim


@dataclass(frozen=True)
class Case:
    """An optimizer class with every hyper-parameter that matters off its default."""

    name: str
    optimizer_class: type[optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def torch(self, params: Any) -> optim.Optimizer:
        """torch's for-loop step."""
        return self.optimizer_class(params, foreach=False, **self.options)

    def salun(self, params: Any, **options: Any) -> SalUnOptimizer:
        return SalUnOptimizer(params, self.optimizer_class, **options, **self.options)


_ADAM = {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}
FUSED = [
    Case("sgd-plain", optim.SGD, {"lr": 0.1}),
    Case(
        "sgd-dampening", optim.SGD,
        {"lr": 0.013, "momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-3, "maximize": True},
    ),
    Case(
        "sgd-nesterov", optim.SGD,
        {"lr": 0.013, "momentum": 0.8, "nesterov": True, "weight_decay": 5e-3},
    ),
    Case("adam", optim.Adam, _ADAM),
    Case("adam-amsgrad", optim.Adam, {**_ADAM, "amsgrad": True, "maximize": True}),
    Case("adamw", optim.AdamW, _ADAM),
    Case("adamw-amsgrad", optim.AdamW, {**_ADAM, "amsgrad": True, "maximize": True}),
]  # fmt: skip
GENERAL = [
    Case("rmsprop", optim.RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    Case("adagrad", optim.Adagrad, {"initial_accumulator_value": 0.1, "weight_decay": 0.1}),
    Case("adadelta", optim.Adadelta, {"rho": 0.8, "weight_decay": 0.1}),
    Case("adamax", optim.Adamax, {"betas": (0.5, 0.9), "weight_decay": 0.1}),
    Case("nadam", optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    Case("radam", optim.RAdam, {"betas": (0.5, 0.9), "weight_decay": 0.1}),
    Case("asgd", optim.ASGD, {"weight_decay": 0.1}),
    Case("rprop", optim.Rprop, {"lr": 0.02}),
]
EVERY = FUSED + GENERAL
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def case_id(value: Any) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


def parameters(
    dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> list[Parameter]:
    """Awkward shapes and layouts, with -0.0, a subnormal and a view off the 16-byte boundary."""
    tensors = [tensor.to(device) for tensor in awkward_tensors(dtype, seed)]
    base = awkward_tensors(dtype, seed + 1)[6].to(device)
    tensors.append(base[3:])
    tensors[4][:2] = torch.tensor([-0.0, 1e-40])
    return [Parameter(tensor) for tensor in tensors]


def named(params: list[Parameter]) -> list[tuple[str, Parameter]]:
    return [(f"w{i}", param) for i, param in enumerate(params)]


def kept(params: list[Parameter], seed: int = 5) -> list[Tensor]:
    """Random bool masks; one all zeros, one all ones."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(param.shape, generator=generator) < 0.5 for param in params]
    masks[3], masks[6] = torch.zeros_like(masks[3]), torch.ones_like(masks[6])
    return masks


def mask_of(masks: list[Tensor]) -> SaliencyMask:
    return SaliencyMask.from_dict({f"w{i}": mask for i, mask in enumerate(masks)})


def give_gradients(params: list[Parameter], step: int, poison: list[Tensor] | None = None) -> None:
    """Fresh gradients, the same for the same step; ``poison``: NaN and inf outside these masks.

    The last parameter gets its first gradient late.
    """
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param)
        if poison is not None:
            bad = float("nan") if i % 2 else float("inf")
            grad = grad.masked_fill(~poison[i], bad)
        param.grad = None if i == len(params) - 1 and step < 2 else grad


def run(
    optimizer: optim.Optimizer, params: list[Parameter], steps: range, poison: Any = None
) -> None:
    for step in steps:
        give_gradients(params, step, poison)
        optimizer.step()


def frozen_kept(
    params: list[Parameter], before: list[Tensor], masks: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of frozen weights, now and then."""
    return [
        (param.detach()[~mask], old[~mask])
        for param, old, mask in zip(params, before, masks, strict=True)
    ]
