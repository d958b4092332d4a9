"""What is kept of a diffusion run, for the demo, the command line and the report.

A demo's folder has ``results.jsonl``: first a ``"settings"`` record, then ``"run"`` records. A
run's folder has ``metrics.jsonl``: ``"step"`` records while it runs, then ``"run"`` records. The
pictures of a run stand beside them as ``samples/NAME.safetensors``, drawn from the same seeds in
every run of a folder. All values are JSON's; percent where the name is of a share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from salun_fast import files
from salun_fast.methods.diffusion import DiffusionResult, DiffusionTrainResult
from salun_fast.methods.diffusion_settings import DIFFUSION_METHODS
from salun_fast.methods.step_loop import StepRecord
from salun_fast.records import proof

if TYPE_CHECKING:
    from salun_fast.evaluation.generated import GeneratedMetrics

MODELS = ("ddpm", "concept")
YARDSTICKS = ("original", "retrain")
TOLD = ("lr", "steps", "alpha", "density")
KIND, VERSION = "generated samples", 1

Record = dict[str, Any]


def is_diffusion(record: Mapping[str, Any]) -> bool:
    """Whether a line of results.jsonl or metrics.jsonl tells of a diffusion model."""
    return record["kind"] == "step" or record.get("model") in MODELS


def settings_record(
    model: str,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    *,
    command: str | None = None,
) -> Record:
    """The first line of a demo's results.jsonl. command: the command line that repeats it."""
    _one_of("model", model, MODELS)
    return {
        "kind": "settings",
        "model": model,
        "settings": dict(settings),
        "machine": dict(machine),
        "command": command,
        "task": "",
        "seed": -1,
        "method": "",
        "overrides": {},
    }


def step_record(found: StepRecord) -> Record:
    """A line of metrics.jsonl while a run goes on."""
    return {"kind": "step", **found.as_dict()}


def run_record(
    *,
    model: str,
    task: str,
    method: str,
    seed: int,
    rows: Sequence[str],
    forgotten: Sequence[int],
    samples: str,
    metrics: Mapping[str, Any] | None = None,
    result: DiffusionTrainResult | None = None,
    overrides: Mapping[str, float | str] | None = None,
    animation: str | None = None,
    samples_steps: Sequence[int] = (),
) -> Record:
    """One finished run, or a yardstick ("original", "retrain").

    task: what is forgotten, as a heading, e.g. "class 8 (Bag)". rows: label of each row of
    samples; forgotten: which of them show what is forgotten. samples, animation: files, relative
    to the folder. metrics: of :func:`metrics_record`; None where no judge was given. result: None
    for what was not made here. overrides: settings that the table names beside the method.
    samples_steps: steps taken at each frame of the animation.
    """
    _one_of("model", model, MODELS)
    _one_of("method", method, (*YARDSTICKS, *DIFFUSION_METHODS))
    outside = [index for index in forgotten if not 0 <= index < len(rows)]
    if outside:
        raise ValueError(f"forgotten must hold rows 0..{len(rows) - 1}, found {outside[0]}")
    record: Record = {
        "kind": "run",
        "model": model,
        "task": task,
        "method": method,
        "seed": seed,
        "overrides": dict(overrides or {}),
        "metrics": None if metrics is None else dict(metrics),
    }
    if result is not None:
        record |= _costs(result)
    nothing = {"mask": None, "certificate": None}
    return {
        **record,
        **(proof(result) if isinstance(result, DiffusionResult) else nothing),
        "rows": list(rows),
        "forgotten": list(forgotten),
        "samples": samples,
        "animation": animation,
        "samples_steps": list(samples_steps),
    }


def class_task(label: int, names: Sequence[str]) -> str:
    """The task of forgetting a class, e.g. "class 8 (Bag)"."""
    name = names[label]
    return f"class {label}" if name == str(label) else f"class {label} ({name})"


def told(result: DiffusionTrainResult | None) -> dict[str, float]:
    """The settings that the report's table names beside a method."""
    if not isinstance(result, DiffusionResult):
        return {}
    left_out = {"density"} if result.mask is None else set()
    left_out |= {"alpha"} if result.method == "ga" else set()
    found = {name: getattr(result.settings, name) for name in TOLD if name not in left_out}
    if result.mask is not None:  # a given mask has its own; int(N r) / N is a little below r
        found["density"] = float(f"{result.mask.density:.3g}")
    return found


def metrics_record(
    found: GeneratedMetrics, labels: Mapping[int, str], *, clip_score: float | None = None
) -> Record:
    """The judge's numbers. labels: how each class is called in the report; clip_score: of the
    retained prompts' images."""
    values = found.as_dict()
    shares = values.pop("per_class")
    values["per_row"] = {labels[index]: share for index, share in shares.items()}
    return values if clip_score is None else values | {"clip_score": clip_score}


def save_samples(path: files.PathLike, images: Tensor) -> None:
    """Write samples, uint8 [rows, seeds, c, h, w], in one step."""
    if images.dtype != torch.uint8 or images.dim() != 5:
        raise ValueError(
            f"images must be uint8 [rows, seeds, c, h, w], found {images.dtype} "
            f"{list(images.shape)}"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.save_tensors(path, {"images": images}, kind=KIND, version=VERSION, facts={})


def load_samples(path: files.PathLike) -> Tensor:
    """uint8 [rows, seeds, c, h, w]; FileFormatError where the file is not what was written."""
    tensors, _ = files.load_tensors(path, kind=KIND, version=VERSION)
    return tensors["images"]


def _costs(result: DiffusionTrainResult) -> Record:
    return {
        "seconds": result.seconds,
        "peak_memory_mb": result.peak_memory_mb,
        "settings": asdict(result.settings),
        "history": [step.as_dict() for step in result.history],
    }


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
