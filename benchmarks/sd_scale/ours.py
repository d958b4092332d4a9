"""The phases as salun-fast does them, all weights at once."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.sd_scale import cost
from benchmarks.sd_scale.meter import Measured, Meter, Scale
from benchmarks.sd_scale.unet import Settings, guided_loss, random_batch, random_unet, shapes_of
from benchmarks.trial import Ceiling
from salun_fast import Saliency, SaliencyMask, SalUnOptimizer

LEARNING_RATE = 1e-5
ROUNDS = 5  # of what is short enough to repeat


def run(settings: Settings) -> Measured:
    torch.set_num_threads(settings.threads)
    shapes = shapes_of(settings.config)
    meter = Meter(
        "salun-fast",
        cost.ours(shapes, getattr(torch, settings.dtype)),
        bandwidth=bandwidth(settings.ceiling_weights),
        scale=Scale(1, 1),
    )
    unet = random_unet(settings)
    mask = _reloaded(_mask(unet, settings, meter), meter)
    _steps(unet, mask, settings, meter)
    return meter.measured()


def bandwidth(numel: int) -> float:
    """Bytes per second of ``a.add_(b)``."""
    ceiling = Ceiling(numel)
    seconds = statistics.median(ceiling.seconds() for _ in range(5))
    return ceiling.bandwidth(seconds)


def _mask(unet: nn.Module, settings: Settings, meter: Meter) -> SaliencyMask:
    """The scores end here: steps need the mask alone."""
    saliency = Saliency(unet)
    batch = random_batch(settings, seed=1)
    with saliency.measure():
        meter("saliency", lambda: guided_loss(unet, batch).backward())
    return meter("mask", lambda: saliency.mask(settings.density), rounds=ROUNDS)


def _reloaded(mask: SaliencyMask, meter: Meter) -> SaliencyMask:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        meter("save", lambda: mask.save(path))
        meter.wrote(path)
        return meter("load", lambda: SaliencyMask.load(path))


def _steps(unet: nn.Module, mask: SaliencyMask, settings: Settings, meter: Meter) -> None:
    """The first step makes Adam's moments and checks that the mask acts."""
    optimizer = SalUnOptimizer(
        unet.named_parameters(), torch.optim.Adam, lr=LEARNING_RATE, mask=mask
    )
    batch = random_batch(settings, seed=2)
    meter("batch", lambda: guided_loss(unet, batch).backward())
    meter("first step", optimizer.step)
    meter("step", optimizer.step, rounds=ROUNDS)
