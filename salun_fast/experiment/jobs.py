"""The jobs of a comparison, each run whole in one process and described by one record."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salun_fast import models
from salun_fast.data import ImageData, ImageSet, forget_split, load_images
from salun_fast.evaluation import ClassifierMetrics, average_gap, evaluate_classifier
from salun_fast.experiment.settings import ExperimentSettings
from salun_fast.methods import UnlearnResult, train_classifier, unlearn_classifier
from salun_fast.methods.loop import repeatable
from salun_fast.optimizer import NonfiniteGradientError
from salun_fast.records import costs, examples, proof
from salun_fast.weights import load_weights, save_weights

WORST_GAP = 100.0  # percent: of settings with which training diverges
RETRAIN_SEED = 1000  # added, so that Retrain starts from other weights than the original did


# Per process: what the search compares with, by the retrained model's file.
_yardsticks: dict[Path, ClassifierMetrics] = {}


@dataclass(frozen=True)
class Job:
    """kind: "train" (the original model of a seed), "run" (a method on a task) or "search"
    (a method tried with ``overrides`` on the tuning seed)."""

    kind: str
    seed: int
    task: str = ""
    method: str = ""
    overrides: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.kind, self.seed, self.task, self.method, self.overrides)

    @property
    def title(self) -> str:
        settings = " ".join(f"{name}={value:g}" for name, value in self.overrides)
        parts = (self.kind, self.task, f"seed {self.seed}", self.method, settings)
        return " ".join(part for part in parts if part)


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of the job that a record describes."""
    overrides = tuple(sorted((k, float(v)) for k, v in record.get("overrides", {}).items()))
    return (record["kind"], record["seed"], record["task"], record["method"], overrides)


def execute(settings: ExperimentSettings, folder: Path, job: Job) -> dict[str, Any]:
    """Do a job; its models and masks go to ``folder``, its record is returned."""
    record: dict[str, Any] = {
        "kind": job.kind,
        "task": job.task,
        "seed": job.seed,
        "method": job.method,
        "overrides": dict(job.overrides),
    }
    if job.kind == "train":
        return record | _train(settings, folder, job)
    if job.kind == "search":
        return record | _search(settings, folder, job)
    return record | _run(settings, folder, job)


def model_file(folder: Path, method: str, seed: int, task: str = "") -> Path:
    """Weights of a model; the original model of a seed serves every task."""
    name = f"original-{seed}" if method == "original" else f"{task}-{method}-{seed}"
    return folder / "models" / f"{name}.safetensors"


def mask_file(folder: Path, method: str, seed: int, task: str) -> Path:
    return folder / "masks" / f"{task}-{method}-{seed}.safetensors"


def load_model(
    settings: ExperimentSettings, folder: Path, method: str, seed: int, task: str = ""
) -> nn.Module:
    """A model of the comparison from its weights file, in eval mode, on the settings' device."""
    model = _fresh(settings, seed)
    load_weights(model, model_file(folder, method, seed, task))
    return model.to(settings.device).to(memory_format=torch.channels_last).eval()


def task_data(
    settings: ExperimentSettings, task: str, seed: int
) -> tuple[ImageSet, ImageSet, ImageSet, torch.Tensor]:
    """(forget, retain, test, indices of the forget images in the training part)."""
    data = _data(settings.data, settings.root)
    forget, retain = forget_split(
        data.train.labels,
        fraction=settings.fraction if task == "random" else None,
        forget_class=settings.forget_class if task == "class" else None,
        seed=seed,
    )
    return data.train.subset(forget), data.train.subset(retain), data.test, forget


@functools.lru_cache(maxsize=1)
def _data(name: str, root: str | None) -> ImageData:
    return load_images(name, root=root)


def _fresh(settings: ExperimentSettings, seed: int) -> nn.Module:
    data = _data(settings.data, settings.root)
    with repeatable(seed, torch.device("cpu")):
        return models.build(
            settings.model, data.num_classes, width=settings.width, in_channels=data.channels
        )


def _train(settings: ExperimentSettings, folder: Path, job: Job) -> dict[str, Any]:
    data = _data(settings.data, settings.root)
    result = train_classifier(
        _fresh(settings, job.seed).to(settings.device),
        data.train,
        test=data.test,
        seed=job.seed,
        progress=False,
        **settings.train,
    )
    _save(result.model, model_file(folder, "original", job.seed))
    return costs(result)


def _run(settings: ExperimentSettings, folder: Path, job: Job) -> dict[str, Any]:
    forget, retain, test, indices = task_data(settings, job.task, job.seed)
    record: dict[str, Any] = {}
    if job.method == "original":
        model = load_model(settings, folder, "original", job.seed)
    else:
        result = _unlearn(settings, folder, job, forget, retain)
        model = result.model
        _save(model, model_file(folder, job.method, job.seed, job.task))
        if result.mask is not None:
            path = mask_file(folder, job.method, job.seed, job.task)
            path.parent.mkdir(parents=True, exist_ok=True)
            result.mask.save(path)
        record = costs(result) | proof(result)
    record["metrics"] = _measure(settings, job, model, forget, retain, test).as_dict()
    record["examples"] = examples(model, forget, indices)
    return record


def _search(settings: ExperimentSettings, folder: Path, job: Job) -> dict[str, Any]:
    forget, retain, test, _ = task_data(settings, job.task, job.seed)
    try:
        result = _unlearn(settings, folder, job, forget, retain)
    except NonfiniteGradientError as error:
        return {"metrics": None, "average_gap": WORST_GAP, "diverged": str(error)}
    judged = [d.head(settings.search_images, seed=job.seed) for d in (forget, retain, test)]
    metrics = _measure(settings, job, result.model, *judged)
    path = model_file(folder, "retrain", job.seed, job.task)
    if path not in _yardsticks:
        retrained = load_model(settings, folder, "retrain", job.seed, job.task)
        _yardsticks[path] = _measure(settings, job, retrained, *judged)
    yardstick = _yardsticks[path]
    return {
        "metrics": metrics.as_dict(),
        "average_gap": average_gap(metrics, yardstick),
        "seconds": result.seconds,
    }


def _unlearn(
    settings: ExperimentSettings, folder: Path, job: Job, forget: ImageSet, retain: ImageSet
) -> UnlearnResult:
    again = job.method == "retrain"
    chosen: dict[str, Any] = dict(settings.train if again else settings.unlearn)
    return unlearn_classifier(
        load_model(settings, folder, "original", job.seed),
        forget,
        retain,
        method=job.method,
        preset=settings.preset,
        seed=job.seed + (RETRAIN_SEED if again else 0),
        progress=False,
        **chosen | dict(job.overrides),
    )


def _measure(
    settings: ExperimentSettings,
    job: Job,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    test: ImageSet,
) -> ClassifierMetrics:
    return evaluate_classifier(
        model,
        forget=forget,
        retain=retain,
        test=test,
        forget_class=settings.forget_class if job.task == "class" else None,
        seed=job.seed,
        max_members=settings.max_members,
    )


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, path)
