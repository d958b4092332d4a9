"""The phases as SalUn's own code does them (SD/train-scripts, state of 2026-02), in our words.

What does not fit in memory runs on the first tensors of the network and is scaled to all.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.sd_scale import cost
from benchmarks.sd_scale.meter import Measured, Meter, Scale
from benchmarks.sd_scale.ours import LEARNING_RATE, ROUNDS
from benchmarks.sd_scale.unet import (
    Settings,
    guided_loss_of_two_calls,
    random_batch,
    random_unet,
    shapes_of,
)

Shapes = Mapping[str, torch.Size]
Masks = dict[str, Tensor]


def saliency(settings: Settings) -> Measured:
    """Gradients of all parameters, kept, and their sums beside them; the whole network, fp32."""
    settings = replace(settings, dtype="float32")
    torch.set_num_threads(settings.threads)
    shapes = shapes_of(settings.config)
    meter = _meter(shapes, shapes)
    unet, batch = random_unet(settings), random_batch(settings, seed=1)
    sums: dict[str, Tensor] = {}

    def one_batch() -> None:
        guided_loss_of_two_calls(unet, batch).backward()
        for name, weight in unet.named_parameters():
            assert weight.grad is not None
            sums[name] = sums.get(name, 0) + weight.grad.cpu()

    meter("saliency", one_batch)
    return meter.measured()


def masks(settings: Settings) -> Measured:
    """Ranks of all scores by sorting twice; masks, and their file, in int64."""
    torch.set_num_threads(settings.threads)
    shapes = shapes_of(settings.config)
    part = first_tensors(shapes, settings.reference_weights)
    meter = _meter(part, shapes)
    _save_and_load(_sorted(part, settings.density, meter), meter)
    return meter.measured()


def _sorted(shapes: Shapes, density: float, meter: Meter) -> Masks:
    sums = {name: torch.randn(shape) for name, shape in shapes.items()}
    return meter("mask", lambda: double_argsort(sums, density), sorts=True)


def _save_and_load(found: Masks, meter: Meter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.pt"
        meter("save", lambda: torch.save(found, path))
        meter.wrote(path)
        found.clear()
        meter("load", lambda: torch.load(path))


def steps(settings: Settings) -> Measured:
    """Every gradient times its int64 mask in a loop, then Adam's for-loop step."""
    torch.set_num_threads(settings.threads)
    shapes = shapes_of(settings.config)
    part = first_tensors(shapes, settings.reference_weights)
    meter = _meter(part, shapes)
    weights = [nn.Parameter(torch.randn(shape)) for shape in part.values()]
    chosen = [torch.randint(2, shape) for shape in part.values()]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE, foreach=False, fused=False)

    def step() -> None:
        for weight, mask in zip(weights, chosen, strict=True):
            assert weight.grad is not None
            weight.grad *= mask.to(weight.device)
        optimizer.step()

    meter("first step", step)
    meter("step", step, rounds=ROUNDS)
    return meter.measured()


def double_argsort(sums: dict[str, Tensor], density: float) -> Masks:
    for total in sums.values():
        total.abs_()
    scores = -torch.cat([total.flatten() for total in sums.values()])
    positions = torch.argsort(scores)
    ranks = torch.argsort(positions)
    k, begin, made = int(scores.numel() * density), 0, {}
    for name, total in sums.items():
        own = ranks[begin : begin + total.numel()]
        mask = torch.zeros_like(own)
        mask[own < k] = 1
        made[name] = mask.reshape(total.shape)
        begin += total.numel()
    return made


def first_tensors(shapes: Shapes, weights: int) -> Shapes:
    """As many as hold ``weights`` at most, and one at least."""
    totals = itertools.accumulate(shape.numel() for shape in shapes.values())
    count = max(1, sum(total <= weights for total in totals))
    return dict(itertools.islice(shapes.items(), count))


def _meter(part: Shapes, whole: Shapes) -> Meter:
    measured, weights = (
        sum(shape.numel() for shape in shapes.values()) for shapes in (part, whole)
    )
    return Meter("reference", cost.reference(weights), scale=Scale(measured, weights))
