"""The run as salun-fast does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.sd_scale.meter import Measured, Meter
from benchmarks.whole_run import subject
from benchmarks.whole_run.phases import DENSITIES, meter
from benchmarks.whole_run.subject import PRESET, Settings
from salun_fast import SaliencyMask, unlearn_classifier
from salun_fast.data import ImageSet
from salun_fast.methods import ClassifierSettings
from salun_fast.methods.classifier import measure
from salun_fast.methods.train import working_copy
from salun_fast.weights import save_weights

# What a caller may add to the defaults, from the same bits to other ones.
WAYS: dict[str, dict[str, Any]] = {
    "salun-fast": {},
    "keep_memory": {"keep_memory": True},
    "keep_memory, bf16": {"keep_memory": True, "precision": "bf16"},
}


def run(settings: Settings, way: str) -> Measured:
    """The unlearned model and the masks go into the files of the way."""
    torch.set_num_threads(settings.threads)
    measured = meter(way)
    chosen = subject.method(settings, **WAYS[way])
    model, images = subject.model(settings), subject.task(settings)
    own = _masks(settings, way, measured, working_copy(model, chosen), images.forget, chosen)
    mask = measured("read", lambda: SaliencyMask.load(own))
    result = measured(
        "unlearn",
        lambda: unlearn_classifier(
            model,
            images.forget,
            images.retain,
            preset=PRESET,
            mask=mask,
            seed=settings.seed,
            progress=False,
            **vars(chosen),
        ),
    )
    save_weights(result.model, settings.weights(way))
    return measured.measured()


def _masks(
    settings: Settings,
    way: str,
    measured: Meter,
    model: nn.Module,
    forget: ImageSet,
    chosen: ClassifierSettings,
) -> Path:
    """The file of the mask that is used. The scores end here: steps need the mask alone."""
    saliency = measured("saliency", lambda: measure(model, forget, chosen))
    folder = settings.masks(way)
    own = folder / f"{settings.density}.safetensors"
    mask = measured("mask", lambda: saliency.mask(settings.density))
    measured("write", lambda: mask.save(own))

    def others() -> None:
        for density in DENSITIES:
            if density != settings.density:
                saliency.mask(density).save(folder / f"{density}.safetensors")

    measured("others", others)
    return own
