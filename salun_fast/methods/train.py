"""Training a classifier from scratch: the source model, and Retrain."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn

from salun_fast._heap import kept_memory
from salun_fast.data import ImageSet, as_image_set
from salun_fast.data.images import Images
from salun_fast.digests import data_digest, model_digest
from salun_fast.evaluation.accuracy import outputs
from salun_fast.evaluation.resources import PeakMemory
from salun_fast.methods.inputs import check_labels, class_count, device_of
from salun_fast.methods.loop import Loop, OnEpoch, repeatable, restore, run_folder
from salun_fast.methods.plans import plain_plan
from salun_fast.methods.result import TrainResult
from salun_fast.methods.settings import TrainSettings, decisive, override
from salun_fast.optimizer import SalUnOptimizer


def train_classifier(
    model: nn.Module,
    train: Images,
    *,
    test: Images | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train a copy of ``model`` as it is by cross-entropy; the model passed is left alone.

    train, test: as for ``unlearn_classifier``. overrides: fields of TrainSettings. A checkpoint
    is written to ``run_dir/checkpoints`` after every epoch; with ``resume`` the run continues
    from it, bit-equal to one that was never interrupted. Same seed, machine and thread count:
    same weights, bit for bit; on a GPU as far as torch's own kernels repeat themselves.
    """
    settings = override(TrainSettings(), overrides)
    device = device_of(model)
    sets = {"train": as_image_set(train, "train")}
    if test is not None:
        sets["test"] = as_image_set(test, "test")
    num_classes = class_count(model, sets["train"], "train")
    for name, data in sets.items():
        check_labels(name, data, num_classes)
    sets = {name: data.to(device) for name, data in sets.items()}
    identity = {
        "method": "train",
        "seed": seed,
        **decisive(settings),
        "model": model_digest(model),
        "train": data_digest(sets["train"]),
    }
    folder = run_folder(run_dir)
    resumed = restore(folder, resume, identity)
    trained = working_copy(model, settings)
    kept = kept_memory(settings.keep_memory, device)
    with PeakMemory(device) as peak, repeatable(seed, device), kept:
        history = Loop(
            title="train",
            model=trained,
            optimizer=sgd(trained, settings),
            plan=plain_plan(sets["train"], settings),
            settings=settings,
            seed=seed,
            identity=identity,
            probe=_probe(trained, sets, settings, seed),
            folder=folder,
            resumed=resumed,
            progress=progress,
            on_epoch=on_epoch,
        ).run()
    seconds = sum(record.seconds for record in history)
    return TrainResult(
        model=trained,
        history=history,
        seconds={"train": seconds, "total": seconds},
        peak_memory_mb=peak.megabytes,
        settings=settings,
    )


def working_copy(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """A deep copy in the memory format that the settings ask for."""
    twin = copy.deepcopy(model)
    if settings.channels_last:
        twin.to(memory_format=torch.channels_last)
    return twin


def sgd(model: nn.Module, settings: TrainSettings) -> SalUnOptimizer:
    """SGD over the trainable parameters; without a mask exactly torch's, but that a NaN or
    infinite gradient stops the run before it reaches the weights."""
    return SalUnOptimizer(
        [(name, p) for name, p in model.named_parameters() if p.requires_grad],
        torch.optim.SGD,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        error_if_nonfinite=True,
    )


def _probe(model: nn.Module, sets: dict[str, ImageSet], settings: TrainSettings, seed: int) -> Any:
    names = {"train": "ra", "test": "ta"}
    count = settings.readout_images
    judged = {names[name]: data.head(count, seed=seed) for name, data in sets.items() if count > 0}
    return lambda: {name: outputs(model, data).accuracy for name, data in judged.items()}
