"""Batches of noisy samples, each a function of its step: what every loss here starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from salun_fast.diffusion.denoising import Denoising, antithetic_timesteps, uniform_timesteps
from salun_fast.diffusion.draws import Order, generator_for

# indices [b] -> samples [b, c, h, w], fp32: in half precision the first steps would add no noise
Clean = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class NoisyBatch:
    """indices: of the samples, int64 [b]. noisy: x_t, fp32 [b, c, h, w]. timesteps: int64 [b].
    target: what the network should say [b, c, h, w]. noise: as drawn, in ``noisy``.
    generator: the batch's own, for what else is to be drawn."""

    indices: Tensor
    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    noise: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class NoisyBatches:
    """Noisy batches of ``count`` samples that ``clean`` hands out on ``device``.

    Draws come from CPU generators, so that they are the same on every device.
    """

    clean: Clean
    count: int
    denoising: Denoising
    device: torch.device
    batch_size: int
    seed: int
    purpose: str
    antithetic: bool = True

    def sequence(self) -> Callable[[int], NoisyBatch]:
        """Shuffled batches by their number, from 0 on and without end."""
        order = Order(self.count, self.batch_size, self.seed, self.purpose)
        return lambda number: self.draw(order.indices(number), number)

    def one_pass(self) -> Iterator[NoisyBatch]:
        """Every sample once, in order; the last batch may be short."""
        parts = torch.split(torch.arange(self.count), self.batch_size)
        for number, indices in enumerate(parts):
            yield self.draw(indices, number)

    def draw(self, indices: Tensor, number: int) -> NoisyBatch:
        """Timesteps and noise of batch ``number`` for these samples."""
        generator = generator_for(self.seed, self.purpose, "batch", number)
        timesteps_of = antithetic_timesteps if self.antithetic else uniform_timesteps
        timesteps = timesteps_of(len(indices), self.denoising.timesteps, generator)
        timesteps = timesteps.to(self.device)
        clean = self.clean(indices, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        return NoisyBatch(
            indices,
            self.denoising.noised(clean, noise, timesteps),
            timesteps,
            self.denoising.target(clean, noise, timesteps),
            noise,
            generator,
        )

    def renoised(self, batch: NoisyBatch) -> Tensor:
        """x_t of the same samples, timesteps and noise with ``clean`` asked once more."""
        clean = self.clean(batch.indices, batch.generator)
        return self.denoising.noised(clean, batch.noise, batch.timesteps)
