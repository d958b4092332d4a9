"""Everything random in a run over steps, as a function of (seed, step) and of nothing before it.

So a resumed run needs no random state: step 700 draws the same whether 699 steps came before it
in this process or in one that was killed.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose; purposes do not collide, nor do neighbouring seeds."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator_for(0, "noise", step)``."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))


class Order:
    """Which samples each step sees: one random permutation of ``count`` after another.

    Every sample is seen once before any is seen again; a batch may span two permutations.
    """

    def __init__(self, count: int, batch_size: int, seed: int, purpose: str) -> None:
        self._count, self._batch_size = count, batch_size
        self._seed, self._purpose = seed, purpose
        self._pass, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """int64 [batch_size] of step ``step``, from 0."""
        wanted = torch.arange(step * self._batch_size, (step + 1) * self._batch_size)
        passes = wanted // self._count
        parts = [
            self._of_pass(number)[wanted[passes == number] % self._count]
            for number in range(int(passes[0]), int(passes[-1]) + 1)
        ]
        return torch.cat(parts)

    def _of_pass(self, number: int) -> Tensor:
        if number != self._pass:
            generator = generator_for(self._seed, self._purpose, "pass", number)
            self._permutation = torch.randperm(self._count, generator=generator)
            self._pass = number
        return self._permutation
