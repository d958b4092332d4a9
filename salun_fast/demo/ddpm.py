"""``demo ddpm``: forget classes of a small diffusion model, with every method and its control."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast import diffusion_records as records
from salun_fast.data import ImageData
from salun_fast.demo.ddpm_models import RECIPES, DemoModels, load_models, load_unet, pictures
from salun_fast.demo.jobs import Comparison, run_jobs
from salun_fast.diffusion.classes import check_class
from salun_fast.diffusion.sampling import sample_classes
from salun_fast.evaluation.frechet import RealFeatures
from salun_fast.evaluation.generated import Judge, evaluate_generated
from salun_fast.experiment.log import OnRecord, Record
from salun_fast.methods.ddpm import unlearn_ddpm
from salun_fast.methods.diffusion import DiffusionResult
from salun_fast.report.film import film

CONTROLLED = ("salun", "random_mask")
SHOWN = 8  # pictures per class in the grid
FRAMES, SHOWN_IN_FRAMES = 10, 4


@dataclass(frozen=True)
class DDPMDemo(Comparison):
    """One comparison; the models are those of ``ddpm_models``.

    classes: the first is forgotten by every one of ``methods``, the others by SalUn and its
    control, the random mask, alone. forget_images: real images of the forgotten class that are
    used, at most. forget_samples, retained_samples: pictures drawn for the judge, of the
    forgotten class and of each other one.
    """

    classes: tuple[int, ...] = ()
    forget_images: int = 1000
    forget_samples: int = 500
    retained_samples: int = 50
    guidance_scale: float = 3.0
    sampling_steps: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classes:
            raise ValueError("classes must hold at least one class to forget")


@dataclass(frozen=True)
class Job:
    """One run: a method, or a yardstick, on a class."""

    forget_class: int
    method: str
    seed: int


def run_ddpm_demo(
    settings: DDPMDemo,
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Run what is missing of the comparison; killed at any moment, the same call goes on.

    Returns all records; pictures are in ``folder/samples``.
    """
    path = Path(folder)
    names = pictures(settings.data, root=settings.root).classes
    for label in settings.classes:
        check_class("classes", label, len(names))
    return run_jobs(
        "ddpm",
        settings,
        path,
        _jobs(settings),
        lambda job: (records.class_task(job.forget_class, names), job.method, job.seed),
        partial(_execute, settings, path),
        command=command,
        on_record=on_record,
    )


def _jobs(settings: DDPMDemo) -> list[Job]:
    """The first class with all its methods, then seed by seed the others: a stopped comparison
    has whole seeds."""
    first, *others = settings.classes
    jobs = [Job(label, "original", settings.seeds[0]) for label in settings.classes]
    if RECIPES[settings.data].forget_class in settings.classes:
        jobs.append(Job(RECIPES[settings.data].forget_class, "retrain", settings.seeds[0]))
    jobs += [Job(first, method, seed) for seed in settings.seeds for method in settings.methods]
    for seed in settings.seeds:
        jobs += [Job(label, method, seed) for label in others for method in CONTROLLED]
    return jobs


@dataclass(frozen=True)
class _Bench:
    """What every job of a process shares."""

    data: ImageData
    models: DemoModels
    judge: Judge
    real: RealFeatures


@functools.lru_cache(maxsize=1)
def _bench(data_name: str, root: str | None, models: str, device: str) -> _Bench:
    data = pictures(data_name, root=root)
    found = load_models(Path(models), data, device)
    judge = Judge.measured(found.judge, f"ResNet-18 of width 8 on {data_name}", data.test)
    return _Bench(data, found, judge, RealFeatures.of(judge.features(), data.train))


def _execute(settings: DDPMDemo, folder: Path, job: Job) -> Record:
    bench = _bench(settings.data, settings.root, settings.models, settings.device)
    frames: list[tuple[int, Tensor]] = []
    result = None
    if job.method == "original":
        unet = bench.models.original
    elif job.method == "retrain":
        unet, _ = load_unet(Path(settings.models) / "retrained", settings.device)
    else:
        result = _unlearned(settings, bench, job, frames)
        unet = result.unet
    return _record(settings, folder, bench, job, unet, result, frames)


def _unlearned(
    settings: DDPMDemo, bench: _Bench, job: Job, frames: list[tuple[int, Tensor]]
) -> DiffusionResult:
    labels = bench.data.train.labels
    forget = bench.data.train.subset((labels == job.forget_class).nonzero().flatten())
    retain = bench.data.train.subset((labels != job.forget_class).nonzero().flatten())
    options = settings.settings_of(job.method)

    def snapshot(step: int, unet: nn.Module) -> None:
        frames.append((step, _shown(settings, bench, unet, SHOWN_IN_FRAMES)))

    filmed = job == Job(settings.classes[0], "salun", settings.seeds[0])
    return unlearn_ddpm(
        bench.models.original,
        bench.models.scheduler,
        forget.head(settings.forget_images, seed=0),
        retain,
        forget_class=job.forget_class,
        method=job.method,
        preset=settings.preset,
        seed=job.seed,
        progress=False,
        on_snapshot=snapshot if filmed else None,
        snapshot_every=max(int(options["steps"]) // FRAMES, 1),
        **options,
    )


def _record(
    settings: DDPMDemo,
    folder: Path,
    bench: _Bench,
    job: Job,
    unet: Any,
    result: DiffusionResult | None,
    frames: list[tuple[int, Tensor]],
) -> Record:
    names = bench.data.classes
    stem = f"samples/{job.method}-{job.forget_class}-{job.seed}"
    records.save_samples(folder / f"{stem}.safetensors", _shown(settings, bench, unet, SHOWN))
    if frames:
        film(folder / f"{stem}.gif", frames, names, [job.forget_class])
    return records.run_record(
        model="ddpm",
        task=records.class_task(job.forget_class, names),
        method=job.method,
        seed=job.seed,
        rows=names,
        forgotten=[job.forget_class],
        samples=f"{stem}.safetensors",
        metrics=_metrics(settings, bench, job, unet),
        result=result,
        overrides=records.told(result),
        animation=f"{stem}.gif" if frames else None,
        samples_steps=[step for step, _ in frames],
    )


def _metrics(settings: DDPMDemo, bench: _Bench, job: Job, unet: Any) -> Record:
    classes = range(bench.data.num_classes)
    forget = [job.forget_class] * settings.forget_samples
    kept = [c for c in classes if c != job.forget_class for _ in range(settings.retained_samples)]

    def drawn(labels: list[int]) -> Tensor:
        seeds = [(job.seed, label, place) for place, label in enumerate(labels)]
        return _sampled(settings, bench, unet, labels, seeds)

    found = evaluate_generated(
        bench.judge,
        forget_images=drawn(forget),
        forget_class=job.forget_class,
        retained_images=drawn(kept),
        retained_labels=torch.tensor(kept),
        real=bench.real,
    )
    return records.metrics_record(found, dict(enumerate(bench.data.classes)))


def _shown(settings: DDPMDemo, bench: _Bench, unet: Any, count: int) -> Tensor:
    """uint8 [classes, count, c, h, w]; the same seeds for every model."""
    classes = bench.data.num_classes
    labels = [c for c in range(classes) for _ in range(count)]
    seeds = [("shown", place) for _ in range(classes) for place in range(count)]
    images = _sampled(settings, bench, unet, labels, seeds)
    return images.view(classes, count, *images.shape[1:])


def _sampled(
    settings: DDPMDemo, bench: _Bench, unet: Any, labels: Sequence[int], seeds: Sequence[object]
) -> Tensor:
    return sample_classes(
        unet,
        bench.models.scheduler,
        labels,
        seeds,
        guidance_scale=settings.guidance_scale,
        steps=settings.sampling_steps,
    )
