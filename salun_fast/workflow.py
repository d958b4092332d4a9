"""Whole runs from a configuration into a run folder: what the commands of the CLI call."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from salun_fast import machine, models
from salun_fast._extras import need
from salun_fast.config import NARROW, RunConfig
from salun_fast.data import ImageData, ImageSet, forget_split, load_images
from salun_fast.evaluation import ClassifierMetrics, evaluate_classifier
from salun_fast.experiment.jobs import RETRAIN_SEED
from salun_fast.gpu import known_device
from salun_fast.mask import SaliencyMask
from salun_fast.methods import (
    EpochRecord,
    TrainResult,
    TrainSettings,
    UnlearnResult,
    train_classifier,
    unlearn_classifier,
)
from salun_fast.methods.classifier import measure
from salun_fast.methods.loop import repeatable
from salun_fast.methods.settings import override, resolve
from salun_fast.methods.train import working_copy
from salun_fast.records import costs, examples, proof
from salun_fast.report import read_source, write_report
from salun_fast.report.diffusion.page import write_diffusion_report
from salun_fast.report.diffusion.source import holds_diffusion
from salun_fast.run import RunFolder
from salun_fast.weights import load_weights, save_weights

Record = dict[str, Any]


class ComputeConfig(Protocol):
    """A configuration that says where to compute."""

    device: str
    threads: int | None


@dataclass(frozen=True)
class Task:
    """The data of a run. indices: of the forget images in the training part."""

    data: ImageData
    forget: ImageSet
    retain: ImageSet
    indices: Tensor


def train(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> TrainResult:
    """Train a model from scratch (or from ``config.weights``) on all training images."""
    settings = override(TrainSettings(), config.train)  # refuses before the folder is made
    config = replace(config, width=_width(config), train=_plain(settings))
    data = load_data(config)
    model = build_model(config, data)
    folder.begin("train", config, resume=resume)
    result = train_classifier(
        model,
        data.train,
        test=data.test,
        seed=config.seed,
        run_dir=folder.path,
        resume=resume,
        on_epoch=lambda record: folder.log(_epoch(record)),
        **config.train,
    )
    folder.write_config("train", config)
    save_weights(result.model, folder.model_file)
    folder.write_metrics(_epoch(record) for record in result.history)
    rebuild_report([folder.path], data=data)
    return result


def unlearn(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> list[Record]:
    """Unlearn, evaluate before and after, report; returns the two records.

    Method "retrain" takes the ``train`` section of the configuration and starts from other
    initial weights than the original model did.
    """
    need("sklearn", "the membership attack of the evaluation", extra="eval")
    task, mask = load_task(config), _given_mask(config)
    original = _original(config, task.data)
    again = config.method == "retrain"
    overrides = {**config.train, **config.unlearn} if again else config.unlearn
    settings = resolve(config.method, config.preset, overrides)
    config = replace(
        config,
        width=_width(config),
        fraction=config.forget_fraction,
        split_seed=config.forget_seed,
        unlearn=_plain(settings),
    )
    folder.begin("unlearn", config, resume=resume)
    result = unlearn_classifier(
        original,
        task.forget,
        task.retain,
        method=config.method,
        preset=config.preset,
        test=task.data.test,
        mask=mask,
        seed=config.seed + (RETRAIN_SEED if again else 0),
        run_dir=folder.path,
        resume=resume,
        on_epoch=lambda record: folder.log(_epoch(record)),
        **config.unlearn,
    )
    folder.write_config("unlearn", config)
    save_weights(result.model, folder.model_file)
    if result.mask is not None:
        result.mask.save(folder.mask_file)
    before = _judged(config, task, original, "original")
    after = _judged(config, task, result.model, config.method) | costs(result) | proof(result)
    after["overrides"] = _telling(result, given_mask=mask is not None)
    folder.write_metrics([*(_epoch(record) for record in result.history), before, after])
    rebuild_report([folder.path], data=task.data)
    return [before, after]


def saliency(config: RunConfig, folder: RunFolder) -> SaliencyMask:
    """Measure saliency on the forget set; keep the scores and the mask at ``unlearn.density``."""
    task = load_task(config)
    settings = resolve("salun", config.preset, config.unlearn)
    model = working_copy(_original(config, task.data), settings)
    folder.begin("saliency", replace(config, width=_width(config)))
    scores = measure(model, task.forget.to(chosen_device(config)), settings)
    mask = scores.mask(settings.density, which=settings.which)
    scores.save(folder.saliency_file)
    mask.save(folder.mask_file)
    return mask


def evaluate(config: RunConfig) -> ClassifierMetrics:
    """UA, RA, TA and MIA of the model in ``config.weights`` on the configuration's split."""
    task = load_task(config)
    return _measured(config, task, build_model(config, task.data))


def check_same_split(config: RunConfig, other: RunConfig) -> None:
    """Raise ValueError where two runs do not forget the same images of the same data."""

    def split(found: RunConfig) -> Record:
        values: Record = {"data": found.data, "forget_class": found.forget_class}
        if found.forget_class is None:
            values |= {"fraction": found.forget_fraction, "split_seed": found.forget_seed}
        return values

    ours, theirs = split(config), split(other)
    if ours != theirs:
        raise ValueError(
            f"the two runs forget different images: {_listed(ours)} and {_listed(theirs)}; "
            "gaps need one and the same split"
        )


def rebuild_report(
    folders: list[str | os.PathLike[str]] | list[Path],
    out: Path | None = None,
    *,
    data: ImageData | None = None,
) -> Path:
    """report.html of a comparison or of run folders; in the first folder unless ``out`` is given.

    Without ``data`` the pictures' data set is loaded again; where it cannot be found any more the
    report has no pictures. Diffusion runs get their own page, with the pictures kept beside them.
    """
    path = out if out is not None else Path(folders[0]) / "report.html"
    if holds_diffusion(folders):
        write_diffusion_report(folders, path)
        return path
    source = read_source(folders)
    write_report(source, path, data=data or _pictures(source.settings))
    return path


def load_data(config: RunConfig) -> ImageData:
    return load_images(
        config.data,
        root=config.root,
        download=config.download,
        channels=config.channels,
        image_size=config.image_size,
    )


def load_task(config: RunConfig) -> Task:
    """The data with its forget set, drawn by ``split_seed``."""
    data = load_data(config)
    forget, retain = forget_split(
        data.train.labels,
        fraction=config.forget_fraction,
        forget_class=config.forget_class,
        seed=config.forget_seed,
    )
    return Task(data, data.train.subset(forget), data.train.subset(retain), forget)


def build_model(config: RunConfig, data: ImageData) -> nn.Module:
    """The model, initialised by ``seed`` or with the weights of a file, on the device."""
    device = chosen_device(config)
    with repeatable(config.seed, device):
        model = models.build(
            config.model, data.num_classes, width=_width(config), in_channels=data.channels
        )
    if config.weights is not None:
        load_weights(model, config.weights)
    return model.to(device)


def _width(config: RunConfig) -> float | None:
    narrow = config.width is None and config.model in models.BUILT_IN
    return NARROW if narrow else config.width


def _original(config: RunConfig, data: ImageData) -> nn.Module:
    """The trained model to start from."""
    if config.weights is None:
        raise ValueError(
            "unlearning needs a trained model: pass --from RUN_FOLDER, a weights file, or "
            "weights=FILE"
        )
    return build_model(config, data)


def chosen_device(config: ComputeConfig) -> torch.device:
    """The device of a configuration; its number of threads is set as well.

    Raises ValueError for a device that torch does not know or have here.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return known_device(config.device)


def _given_mask(config: RunConfig) -> SaliencyMask | None:
    return None if config.mask is None else SaliencyMask.load(Path(config.mask))


def _judged(config: RunConfig, task: Task, model: nn.Module, method: str) -> Record:
    return {
        "kind": "run",
        "task": config.task,
        "seed": config.seed,
        "method": method,
        "overrides": {},
        "metrics": _measured(config, task, model).as_dict(),
        "examples": examples(model, task.forget, task.indices),
        "machine": machine.facts(config.device),
    }


def _measured(config: RunConfig, task: Task, model: nn.Module) -> ClassifierMetrics:
    return evaluate_classifier(
        model,
        forget=task.forget,
        retain=task.retain,
        test=task.data.test,
        forget_class=config.forget_class,
        seed=config.seed,
        max_members=config.max_members,
    )


def _plain(settings: TrainSettings) -> Record:
    """All settings as YAML takes them."""
    return asdict(settings) | {"milestones": list(settings.milestones)}


def _telling(result: UnlearnResult, *, given_mask: bool) -> dict[str, float]:
    """The settings that the report's table names beside a method."""
    found = {"lr": result.settings.lr}
    if result.mask is not None:
        density = result.mask.density if given_mask else result.settings.density
        found["density"] = float(f"{density:.4g}")  # int(N r) / N is a little below r
    return found


def _epoch(record: EpochRecord) -> Record:
    return {"kind": "epoch", **record.as_dict()}


def _listed(values: Record) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _pictures(settings: Record) -> ImageData | None:
    kept = {k: settings[k] for k in ("root", "channels", "image_size") if settings.get(k)}
    try:
        return load_images(settings["data"], **kept)
    except (FileNotFoundError, ImportError):
        return None
