"""What a benchmark consists of: ours, its peers, and what work each side does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Call = Callable[[], object]
CPU = torch.device("cpu")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Size:
    """``numel`` weights in ``tensors`` tensors of equal size, or of the given ``counts``.

    dtype: of weights and gradients; scores and state are fp32. density: of the mask; None without
    one. name: of the model that has so many. threads: of the CPU; None for as many as torch takes.
    """

    numel: int = 100_000_000
    tensors: int = 100
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    density: float | None = 0.5
    counts: tuple[int, ...] = ()
    name: str = ""
    threads: int | None = None

    def __str__(self) -> str:
        density = "" if self.density is None else f"{self.density:g}"
        threads = f"{self.threads}-threads" if self.threads else ""
        parts = [self.name or f"{self.numel:.0e}", DTYPES[self.dtype], density, threads]
        return "-".join(filter(None, parts))

    @property
    def each(self) -> int:
        return self.numel // self.tensors

    @property
    def numels(self) -> tuple[int, ...]:
        """Weights of every tensor."""
        return self.counts or (self.each,) * self.tensors

    @property
    def k(self) -> int:
        """Bits of the mask."""
        if self.density is None:
            raise ValueError("expected a size with a density, found one without")
        return int(sum(self.numels) * self.density)

    def scaled(self, factor: float) -> Size:
        """As many tensors, of ``factor`` as many weights (at least one)."""
        counts = tuple(max(1, round(count * factor)) for count in self.counts)
        numel = sum(counts) or max(self.tensors, round(self.numel * factor))
        return replace(self, numel=numel, counts=counts)

    def rand(self, seed: int, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Normal values, touched and so warm. One draw, shifted per tensor: drawing is slow."""
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(max(self.numels), generator=generator).to(self.device)
        dtype = dtype or self.dtype
        return [
            (first[:count] * (1 + 1e-4 * index)).to(dtype)
            for index, count in enumerate(self.numels)
        ]

    def zeros(self) -> list[Tensor]:
        """fp32 state or scores."""
        return [torch.full((count,), 0.0, device=self.device) for count in self.numels]

    def steps(self) -> list[Tensor]:
        """Step counters, one per tensor."""
        return [torch.full((), 0.0, device=self.device) for _ in range(self.tensors)]


@dataclass(frozen=True)
class Peer:
    """Another way to the same end.

    work: what it does that ours does not, or the other way round. slow: timed once, and left out
    by --skip-slow. keeps: bytes per weight it holds between calls beside weights, gradients and
    state: its masks and copies. needs: bytes per weight it takes at its worst; it is left out, and
    that is said, where they are not free. missing: why it cannot run at all.

    target: how many times faster ours is meant to be; 1/1.6 allows ours 1.6 times its time. margin:
    seconds that ours may take longer. memory: how many times its extra memory ours may need.
    """

    name: str
    call: Call
    work: str = ""
    target: float | None = None
    slow: bool = False
    keeps: float = 0.0
    needs: float = 0.0
    missing: str = ""
    margin: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """numel: weights. bytes: what the op must read and write per weight, or None where it is not
    one pass over memory. keeps: as a peer's.

    Targets: ceiling, the share of the bandwidth of ``a.add_(b)`` that is meant to be reached;
    memory, the extra bytes allowed; limit, the seconds allowed.

    before: done before each call of ours, untimed. cold: every call finds its data in memory, none
    in a cache.
    """

    name: str
    ours: Call
    work: str
    peers: list[Peer]
    numel: int
    bytes: float | None = None
    ceiling: float | None = None
    keeps: float = 0.0
    memory: float | None = None
    limit: float | None = None
    before: Call | None = None
    cold: bool = True

    def without_targets(self) -> Case:
        """Measured at a size of which nothing is claimed."""
        peers = [replace(peer, target=None, margin=None, memory=None) for peer in self.peers]
        return replace(self, ceiling=None, memory=None, limit=None, peers=peers)


Make = Callable[[Size], Case]
