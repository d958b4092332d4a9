"""The run as salun-fast does it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.sd_scale.meter import Measured
from benchmarks.whole_run import subject
from benchmarks.whole_run.phases import DENSITIES, meter
from benchmarks.whole_run.subject import PRESET, Settings
from salun_fast import SaliencyMask, unlearn_classifier
from salun_fast.methods.classifier import measure
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
    changes, measured = WAYS[way], meter(way)
    model, images = subject.model(settings), subject.task(settings)
    chosen = subject.method(settings, **changes)
    saliency = measured(
        "saliency",
        lambda: measure(_in_its_layout(model), images.forget, chosen),
    )
    folder = settings.masks(way)
    own = folder / f"{settings.density}.safetensors"
    mask = measured("mask", lambda: saliency.mask(settings.density))
    measured("write", lambda: mask.save(own))

    def others() -> None:
        for density in DENSITIES:
            if density != settings.density:
                saliency.mask(density).save(folder / f"{density}.safetensors")

    measured("others", others)
    del saliency
    read = measured("read", lambda: SaliencyMask.load(own))
    result = measured(
        "unlearn",
        lambda: unlearn_classifier(
            model,
            images.forget,
            images.retain,
            preset=PRESET,
            mask=read,
            seed=settings.seed,
            progress=False,
            **vars(chosen),
        ),
    )
    save_weights(result.model, settings.weights(way))
    return measured.measured()


def _in_its_layout(model: torch.nn.Module) -> torch.nn.Module:
    return model.to(memory_format=torch.channels_last)
