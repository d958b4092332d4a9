"""One setting changed at a time: seconds of a step, and the memory of the process; and the ops
that a step's time goes to."""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.sd_scale.meter import give_back
from benchmarks.whole_run import subject
from benchmarks.whole_run.subject import Settings
from salun_fast import SaliencyMask, unlearn_classifier
from salun_fast.evaluation.accuracy import outputs

DEFAULTS = "salun-fast"  # the way whose mask is taken
COMPILED = "`torch.compile` of the model"
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults: channels last": {},
    "`channels_last=False`": {"channels_last": False},
    "`keep_memory=True`": {"keep_memory": True},
    '`precision="bf16"`': {"precision": "bf16"},
    COMPILED: {},
}
MASKED_STEP = "masked step, with the check of its gradients"
OPS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution",),
    "batch norm, both ways": ("native_batch_norm", "native_batch_norm_backward"),
    "ReLU and shortcuts": ("threshold_backward", "clamp_min_", "add_", "add"),
    MASKED_STEP: ("linalg_vector_norm", "isfinite"),
}
REST = "all else in torch"


class Variant(NamedTuple):
    """seconds: median of a step. first: seconds of the first one. peak: bytes."""

    name: str
    seconds: float
    first: float
    peak: float


def names(settings: Settings) -> list[str]:
    return [name for name in VARIANTS if settings.compiled or name != COMPILED]


def run(settings: Settings, name: str) -> Variant:
    """Steps of one batch, each an epoch of its own."""
    torch.set_num_threads(settings.threads)
    model = subject.model(settings)
    if name == COMPILED:
        model = torch.compile(model)  # type: ignore[assignment]
    give_back()
    result = _steps(settings, model, 1 + settings.rounds, VARIANTS[name])
    first, *rest = (record.seconds for record in result.history)
    return Variant(name, statistics.median(rest), first, result.peak_memory_mb * 2**20)


def shares(settings: Settings) -> dict[str, float]:
    """Seconds by kind of op in one step of the defaults, after one that is not looked at."""
    torch.set_num_threads(settings.threads)
    model = subject.model(settings)
    _steps(settings, model, 1, {})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _steps(settings, model, 1, {})
    found = dict.fromkeys([*OPS, REST], 0.0)
    for event in profiler.key_averages():
        found[_kind(event.key)] += event.self_cpu_time_total / 1e6
    return found


def _kind(op: str) -> str:
    if op.startswith("salun_fast::"):
        return MASKED_STEP
    name = op.removeprefix("aten::")
    return next((kind for kind, ops in OPS.items() if name in ops), REST)


def _steps(settings: Settings, model: nn.Module, steps: int, changes: dict[str, Any]) -> Any:
    """Fine-tuning under the mask: what is learned does not matter to the time."""
    path = settings.masks(DEFAULTS) / f"{settings.density}.safetensors"
    images = subject.task(settings)
    batch = images.retain.head(settings.batch_size, seed=0)
    chosen = subject.method(settings, **{"epochs": steps} | changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unlearn_classifier(
            model,
            images.forget,
            batch,
            method="ft",
            mask=SaliencyMask.load(path),
            progress=False,
            **vars(chosen),
        )


def readout(settings: Settings) -> float:
    """Seconds for a look at the forget and retain images: what each epoch's live readout costs."""
    torch.set_num_threads(settings.threads)
    model, images = subject.model(settings), subject.task(settings)
    model.to(memory_format=torch.channels_last)
    started = time.perf_counter()
    for part in (images.forget, images.retain):
        outputs(model, part)
    return time.perf_counter() - started
