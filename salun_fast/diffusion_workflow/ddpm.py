"""Forgetting a class of a class-conditional diffusion model: one run, and judging it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_fast import machine, workflow
from salun_fast.data import ImageData, ImageSet, forget_split
from salun_fast.diffusion import pipelines
from salun_fast.diffusion.classes import check_class, class_count
from salun_fast.diffusion_config import DDPMConfig, DDPMTrainConfig
from salun_fast.diffusion_records import (
    Record,
    class_task,
    metrics_record,
    run_record,
    save_samples,
    told,
)
from salun_fast.diffusion_workflow import kept
from salun_fast.diffusion_workflow.judging import judge_of, real_features
from salun_fast.diffusion_workflow.picture_data import class_data
from salun_fast.diffusion_workflow.sampling import Sampling, class_pictures
from salun_fast.evaluation.frechet import RealFeatures
from salun_fast.evaluation.generated import GeneratedMetrics, Judge, evaluate_generated
from salun_fast.mask import SaliencyMask
from salun_fast.methods.ddpm import unlearn_ddpm
from salun_fast.methods.diffusion import DiffusionTrainResult
from salun_fast.methods.diffusion_settings import resolve_ddpm
from salun_fast.run import RunFolder

COMMAND = "unlearn ddpm"


def unlearn_ddpm_run(
    config: DDPMConfig, folder: RunFolder, *, resume: bool = False
) -> list[Record]:
    """Unlearn, draw pictures before and after, judge them where there is a judge, report.

    Returns the records of the original and of the method.
    """
    settings = resolve_ddpm(config.method, config.preset, config.unlearn)
    pipeline = _original(config)
    bench = Bench.of(config, pipeline, config.forget_class)
    mask = None if config.mask is None else SaliencyMask.load(config.mask)
    config = replace(config, unlearn=asdict(settings))
    film = (
        kept.Film(folder, bench.rows, bench.row_labels, bench.forgotten_rows)
        if config.snapshot_every
        else None
    )
    with kept.begun(folder, COMMAND, config, resume=resume):
        result = unlearn_ddpm(
            pipeline.unet,
            pipeline.scheduler,
            bench.forget,
            bench.retain,
            forget_class=bench.forget_class,
            replacement_class=config.replacement_class,
            method=config.method,
            preset=config.preset,
            mask=mask,
            seed=config.seed,
            run_dir=folder.path,
            resume=resume,
            on_step=kept.logging(folder),
            on_snapshot=film,
            snapshot_every=config.snapshot_every,
            **config.unlearn,
        )
    return kept.finish(folder, COMMAND, config, pipeline, result, film, bench.record)


def evaluate_ddpm(
    config: DDPMConfig, folder: RunFolder, *, retrained: Path | None = None
) -> dict[str, GeneratedMetrics]:
    """The judge's numbers of the original, the unlearned and, where given, a retrained model.

    Raises ValueError without a judge.
    """
    if config.judge is None:
        raise ValueError(
            "evaluating a diffusion model needs a judge: pass judge=RUN_FOLDER of salun-fast train"
        )
    original = _original(config)
    bench = Bench.of(config, original, config.forget_class)
    device = workflow.chosen_device(config)
    unets = {
        "original": original.unet,
        config.method: pipelines.load(pipelines.found_in(folder.path), device).unet,
    }
    if retrained is not None:
        unets["retrain"] = pipelines.load(pipelines.found_in(retrained), device).unet
    return {name: bench.measured(bench.drawn(unet)) for name, unet in unets.items()}


@dataclass(frozen=True, eq=False)
class Bench:
    """The data, the pictures to draw and the judge, alike for every model of a run."""

    config: DDPMConfig | DDPMTrainConfig
    scheduler: Any
    sampling: Sampling
    data: ImageData
    forget: ImageSet
    retain: ImageSet
    forget_class: int
    judge: Judge | None
    real: RealFeatures | None

    @staticmethod
    def of(config: DDPMConfig | DDPMTrainConfig, pipeline: Any, forget_class: int | None) -> Bench:
        """Raises ValueError for what does not fit the pipeline."""
        sampling = Sampling.of(config)
        classes = class_count(pipeline.unet)
        if forget_class is None:
            raise ValueError(f"forget_class must be given, one of 0..{classes - 1}")
        check_class("forget_class", forget_class, classes)
        if config.samples_per_class < 2:
            raise ValueError(
                f"samples_per_class must be at least 2, found {config.samples_per_class}: a "
                "distance needs two pictures"
            )
        data = class_data(config.data, pipeline.unet, root=config.root, download=config.download)
        parts = forget_split(data.train.labels, forget_class=forget_class)
        judge = real = None
        if config.judge is not None:
            judge = judge_of(config.judge, data, device=config.device)
            real = real_features(
                judge, data, seed=config.seed, inception=config.inception, device=config.device
            )
        forget, retain = (data.train.subset(part) for part in parts)
        return Bench(
            config, pipeline.scheduler, sampling, data, forget, retain, forget_class, judge, real
        )

    @property
    def shown(self) -> list[int]:
        """The classes of the grid's rows."""
        return kept.shown_rows(self.data.classes, self.forget_class)

    @property
    def row_labels(self) -> list[str]:
        return [self.data.classes[label] for label in self.shown]

    @property
    def forgotten_rows(self) -> list[int]:
        return [self.shown.index(self.forget_class)]

    @property
    def task(self) -> str:
        return class_task(self.forget_class, self.data.classes)

    def rows(self, unet: Any, count: int) -> Tensor:
        """uint8 [rows, count, c, h, w]: a few pictures of each class shown."""
        return torch.stack([self._pictures(unet, label, count) for label in self.shown])

    def drawn(self, unet: Any) -> dict[int, Tensor]:
        """What is kept and judged of a model: pictures of every class, or of those shown where
        nobody judges them."""
        if self.judge is None:
            return {label: self._pictures(unet, label, kept.SHOWN) for label in self.shown}
        count = self.config.samples_per_class
        return {c: self._pictures(unet, c, count) for c in range(self.data.num_classes)}

    def measured(self, drawn: dict[int, Tensor]) -> GeneratedMetrics:
        assert self.judge is not None
        others = [label for label in drawn if label != self.forget_class]
        return evaluate_generated(
            self.judge,
            forget_images=drawn[self.forget_class],
            forget_class=self.forget_class,
            retained_images=torch.cat([drawn[label] for label in others]),
            retained_labels=torch.tensor([c for c in others for _ in range(len(drawn[c]))]),
            real=self.real,
        )

    def record(
        self,
        folder: RunFolder,
        method: str,
        unet: Any,
        result: DiffusionTrainResult | None = None,
    ) -> Record:
        """Draw, judge and keep the pictures of one model."""
        drawn = self.drawn(unet)
        name = f"samples/{method}.safetensors"
        shown = torch.stack([drawn[label][: kept.SHOWN] for label in self.shown])
        save_samples(folder.path / name, shown)
        metrics = None
        if self.judge is not None:
            metrics = metrics_record(self.measured(drawn), dict(enumerate(self.data.classes)))
        return run_record(
            model="ddpm",
            task=self.task,
            method=method,
            seed=self.config.seed,
            rows=self.row_labels,
            forgotten=self.forgotten_rows,
            samples=name,
            metrics=metrics,
            result=result,
            overrides=told(result),
        ) | {"machine": machine.facts(self.config.device)}

    def _pictures(self, unet: Any, label: int, count: int) -> Tensor:
        return class_pictures(unet, self.scheduler, label, count, self.sampling)


def _original(config: DDPMConfig) -> Any:
    if config.pipeline is None:
        raise ValueError(
            "unlearning needs a trained model: pass --from with the folder of a "
            "ClassConditionalPipeline or a run folder of train ddpm"
        )
    folder = pipelines.found_in(config.pipeline)
    if not pipelines.is_class_conditional(folder):
        raise ValueError(
            f"{folder} holds no ClassConditionalPipeline; for a text-to-image pipeline use "
            "unlearn concept"
        )
    return pipelines.load(folder, workflow.chosen_device(config))
