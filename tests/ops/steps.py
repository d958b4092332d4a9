"""One runner for both masked steps: state, masks, and the op beside its oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from salun_fast import bits, ops, reference
from tests.conftest import awkward_tensors, clones


@dataclass
class Problem:
    """Lists that a masked step works on."""

    params: list[Tensor]
    masks: list[Tensor]
    states: list[list[Tensor]] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    ranks: list[Tensor] = field(default_factory=list)

    def copy(self) -> Problem:
        return Problem(
            clones(self.params),
            self.masks,
            [clones(state) for state in self.states],
            clones(self.steps),
            self.ranks,
        )

    def tensors(self) -> list[Tensor]:
        return [*self.params, *(t for state in self.states for t in state), *self.steps]


def random_masks(params: list[Tensor], density: float, seed: int) -> list[Tensor]:
    """Words in memory order; every fourth parameter moves whole (no words)."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for i, param in enumerate(params):
        words = bits.pack(torch.rand(param.shape, generator=generator) < density)
        masks.append(bits.to_memory_order(words, param) if i % 4 != 3 else words[:0])
    return masks


def compact(p: Problem) -> Problem:
    """The same with compact state wherever there is a mask; nothing is shared."""
    ours = p.copy()
    ours.ranks = [
        bits.ranks(words, param.numel()) if words.numel() else torch.empty(0, dtype=torch.int64)
        for param, words in zip(p.params, p.masks, strict=True)
    ]
    for state in ours.states:
        for i, words in enumerate(p.masks):
            if words.numel():
                state[i] = bits.compress(bits.in_memory_order(state[i]), words)
    return ours


@dataclass
class Half:
    """How parameters of half precision take results; by default to the nearest."""

    masters: list[Tensor] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    rounding_seed: int | None = None

    def copy(self) -> Half:
        return Half(clones(self.masters), self.origins, self.rounding_seed)

    def options(self) -> dict[str, Any]:
        return {
            "masters": self.masters,
            "origins": self.origins,
            "rounding_seed": self.rounding_seed,
        }


def problem(dtype: torch.dtype, states: int, density: float = 0.5, seed: int = 0) -> Problem:
    params = awkward_tensors(dtype, seed)
    return Problem(
        params,
        random_masks(params, density, seed + 1),
        [[torch.zeros_like(p, dtype=torch.float32) for p in params] for _ in range(states)],
        [torch.tensor(0.0) for _ in params],
    )


def gradients(dtype: torch.dtype, count: int, seed: int = 7) -> list[list[Tensor]]:
    return [awkward_tensors(dtype, seed + i, scale=0.5 + i) for i in range(count)]


@dataclass(frozen=True)
class Sgd:
    """Hyper-parameters of one case, and how op and oracle take them."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    scale: float | None = None
    lr: float = 0.013
    states = 1

    def op(self, p: Problem, grads: list[Tensor], **more: Any) -> None:
        ops.masked_sgd_(
            p.params, grads, p.states[0], p.steps, p.masks, lr=self.lr, momentum=self.momentum,
            dampening=self.dampening, weight_decay=self.weight_decay, nesterov=self.nesterov,
            maximize=self.maximize, grad_scale=_tensor(self.scale), ranks=p.ranks, **more,
        )  # fmt: skip

    def oracle(self, p: Problem, grads: list[Tensor], half: Half | None = None) -> None:
        half = half or Half()
        reference.masked_sgd_(
            p.params, grads, p.states[0] if self.momentum else [], p.steps, p.masks, half.masters,
            p.ranks, torch.tensor(self.lr, dtype=torch.float64), self.momentum, self.dampening,
            self.weight_decay, self.nesterov, self.maximize, _tensor(self.scale), None,
            half.origins, half.rounding_seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Adam:
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    amsgrad: bool = False
    maximize: bool = False
    scale: float | None = None
    lr: float = 0.013
    states = 3

    def op(self, p: Problem, grads: list[Tensor], **more: Any) -> None:
        m, v, v_max = p.states
        ops.masked_adam_(
            p.params, grads, m, v, v_max if self.amsgrad else [], p.steps, p.masks, lr=self.lr,
            betas=self.betas, eps=self.eps, weight_decay=self.weight_decay,
            decoupled=self.decoupled, maximize=self.maximize, grad_scale=_tensor(self.scale),
            ranks=p.ranks, **more,
        )  # fmt: skip

    def oracle(self, p: Problem, grads: list[Tensor], half: Half | None = None) -> None:
        half = half or Half()
        m, v, v_max = p.states
        reference.masked_adam_(
            p.params, grads, m, v, v_max if self.amsgrad else [], p.steps, p.masks, half.masters,
            p.ranks, torch.tensor(self.lr, dtype=torch.float64), *self.betas, self.eps,
            self.weight_decay, self.decoupled, self.maximize, _tensor(self.scale), None,
            half.origins, half.rounding_seed,
        )  # fmt: skip


# Every hyper-parameter off its default in at least one case (TRAPS).
SGD_CASES = {
    "plain": Sgd(),
    "paper": Sgd(momentum=0.9, weight_decay=5e-4),
    "dampened-ascent": Sgd(momentum=0.9, dampening=0.3, weight_decay=5e-2, maximize=True),
    "nesterov-scaled": Sgd(momentum=0.8, nesterov=True, weight_decay=1e-2, scale=1024.0),
    "odd-scale": Sgd(weight_decay=0.1, maximize=True, scale=3.0),
}
ADAM_CASES = {
    "adam": Adam(),
    "amsgrad-ascent": Adam(
        betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, amsgrad=True, maximize=True
    ),
    "adamw-scaled": Adam(
        betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1, decoupled=True, scale=1024.0
    ),
    "adamw-amsgrad": Adam(betas=(0.9, 0.95), weight_decay=0.01, decoupled=True, amsgrad=True),
    "far-lerp": Adam(betas=(0.3, 0.9), eps=1e-3, weight_decay=0.1),
}
CASES: dict[str, Sgd | Adam] = {
    **{f"sgd-{name}": case for name, case in SGD_CASES.items()},
    **{f"adam-{name}": case for name, case in ADAM_CASES.items()},
}


def _tensor(value: float | None) -> Tensor | None:
    return None if value is None else torch.tensor(value)
