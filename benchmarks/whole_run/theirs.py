"""The run as SalUn's own code does it (Classification/, state of 2026-02), in our words."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sd_scale.meter import Measured
from benchmarks.sd_scale.theirs import double_argsort
from benchmarks.whole_run import subject
from benchmarks.whole_run.phases import DENSITIES, REFERENCE, meter
from benchmarks.whole_run.subject import Settings
from salun_fast.data import Batches, ImageSet
from salun_fast.methods import ClassifierSettings
from salun_fast.weights import save_weights

Tensors = dict[str, Tensor]


def run(settings: Settings) -> Measured:
    """The unlearned model and the masks go into the files of the way."""
    torch.set_num_threads(settings.threads)
    measured = meter(REFERENCE)
    model, images = subject.model(settings), subject.task(settings)
    chosen = subject.method(settings)
    sums = measured("saliency", lambda: summed_gradients(model, images.forget, chosen))
    folder = settings.masks(REFERENCE)
    own = folder / f"{settings.density}.pt"
    made = measured("mask", lambda: double_argsort(sums, settings.density))
    measured("write", lambda: torch.save(made, own))
    made.clear()
    measured("others", lambda: _others(sums, settings.density, folder))
    sums.clear()
    mask = measured("read", lambda: torch.load(own))
    measured("unlearn", lambda: unlearn(model, mask, settings, chosen))
    save_weights(model, settings.weights(REFERENCE))
    return measured.measured()


def summed_gradients(model: nn.Module, forget: ImageSet, chosen: ClassifierSettings) -> Tensors:
    """Batch by batch in eval mode; sums with their sign beside the gradients."""
    model.eval()
    sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for images, labels in Batches(forget, chosen.batch_size):
        model.zero_grad()
        (-F.cross_entropy(model(images), labels)).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None
                sums[name] += weight.grad.cpu()
    model.zero_grad()
    return sums


def _others(sums: Tensors, own: float, folder: Path) -> None:
    for density in DENSITIES:
        if density != own:
            torch.save(double_argsort(sums, density), folder / f"{density}.pt")


def unlearn(
    model: nn.Module, masks: Tensors, settings: Settings, chosen: ClassifierSettings
) -> None:
    """Gradients times int64 masks, torch's step, then the frozen weights put back and their
    momentum cleared."""
    model.train()
    weights = dict(model.named_parameters())
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=chosen.lr,
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
    )
    for images, labels in subject.batches(settings):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, weight in weights.items():
            assert weight.grad is not None
            weight.grad *= masks[name]
        optimizer.step()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(torch.where(masks[name] == 1, weight, originals[name]))
                optimizer.state[weight]["momentum_buffer"] *= masks[name]
