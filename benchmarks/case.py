"""What a benchmark consists of: ours, its peers, and what work each side does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """``numel`` fp32 weights in ``tensors`` tensors of equal size."""

    numel: int = 100_000_000
    tensors: int = 100
    device: torch.device = CPU

    @property
    def each(self) -> int:
        return self.numel // self.tensors

    def rand(self, seed: int) -> list[Tensor]:
        """Normal values, touched and so warm. One draw, shifted per tensor: drawing is slow."""
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(self.each, generator=generator).to(self.device)
        return [first * (1 + 1e-4 * i) for i in range(self.tensors)]

    def zeros(self) -> list[Tensor]:
        return [torch.full((self.each,), 0.0, device=self.device) for _ in range(self.tensors)]

    def steps(self) -> list[Tensor]:
        """Step counters, one per tensor."""
        return [torch.full((), 0.0, device=self.device) for _ in range(self.tensors)]


@dataclass(frozen=True)
class Peer:
    """Another way to the same end.

    work: what it does that ours does not, or the other way round. target: how many times faster
    ours is meant to be. slow: timed once, and left out by --skip-slow.
    """

    name: str
    call: Call
    work: str = ""
    target: float | None = None
    slow: bool = False


@dataclass(frozen=True)
class Case:
    """numel: weights. bytes: what the op must read and write per weight, or None where it is not
    one pass over memory. ceiling: share of the bandwidth of ``a.add_(b)`` that is meant to be
    reached."""

    name: str
    ours: Call
    work: str
    peers: list[Peer]
    numel: int
    bytes: float | None = None
    ceiling: float | None = None


Make = Callable[[Size], Case]
