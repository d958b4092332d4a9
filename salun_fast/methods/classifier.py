"""Unlearning a classifier: SalUn, its variants and controls, and the baselines of its paper."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import nn

from salun_fast._heap import kept_memory
from salun_fast.data import Batches, ImageSet, as_image_set
from salun_fast.data.images import Images
from salun_fast.digests import data_digest, model_digest
from salun_fast.distributed import whole_mask
from salun_fast.evaluation.accuracy import outputs
from salun_fast.evaluation.certificate import FreezeCertificate
from salun_fast.evaluation.resources import PeakMemory
from salun_fast.mask import SaliencyMask
from salun_fast.methods.checkpoint import Checkpoint
from salun_fast.methods.inputs import (
    check_labels,
    check_not_empty,
    check_same_shape,
    class_count,
    device_of,
)
from salun_fast.methods.loop import Loop, OnEpoch, repeatable, restore, run_folder
from salun_fast.methods.plans import Plan, plain_plan
from salun_fast.methods.random_label import random_label_plan
from salun_fast.methods.result import EpochRecord, UnlearnResult
from salun_fast.methods.settings import MASKED, RANDOM_LABEL, ClassifierSettings, decisive, resolve
from salun_fast.methods.soft import SoftThreshold
from salun_fast.methods.train import sgd, working_copy
from salun_fast.saliency import Saliency

MASKABLE = (*MASKED, "ft", "ga")  # methods that take a mask made elsewhere
UNMOVED = 0.5  # percentage points of UA after the first epoch below which we speak up


def unlearn_classifier(
    model: nn.Module,
    forget: Images,
    retain: Images | None,
    *,
    method: str = "salun",
    preset: str = "paper",
    num_classes: int | None = None,
    test: Images | None = None,
    mask: SaliencyMask | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
    **overrides: Any,
) -> UnlearnResult:
    """Make a copy of ``model`` forget ``forget``; the model passed is left alone.

    forget, retain, test: an ImageSet, a Dataset or DataLoader (read once into memory) or a pair
        (images [n, ...], labels int64 [n]); ``test`` only serves the readout.
    method: "salun" (random labels on the most salient weights), "random_mask" (the control: as
        many weights, drawn at random), "rl" (random labels, all weights), "salun_soft" (proximal
        step instead of a mask), "ft" (fine-tune on retain data), "ga" (gradient ascent on forget
        data), "retrain" (from scratch without forget data, the yardstick).
    preset: "paper" or "reference"; overrides: fields of ClassifierSettings. There is no weight
        α between forget and retain loss in this setting.
    mask: use this one instead of measuring saliency; for salun, random_mask, ft and ga.
    run_dir, resume: a checkpoint is written to ``run_dir/checkpoints`` after every epoch; with
        ``resume`` the run continues from it, bit-equal to one that was never interrupted.
    on_epoch: called with the EpochRecord of every epoch.

    Runs on the model's device. Same seed, machine and thread count: same weights, bit for bit; on
    a GPU as far as torch's own kernels repeat themselves (``torch.use_deterministic_algorithms``).
    Without hold_norm_stats the batch-norm statistics move even where every weight is frozen:
    they are buffers and no mask covers them. Raises ValueError or TypeError before anything is
    trained; warns when there is no retain data, without which accuracy collapses.
    """
    settings = resolve(method, preset, overrides)
    task = _checked(model, forget, retain, test, num_classes, method)
    _check_mask(model, mask, method)
    identity = _identity(model, task, method, settings, seed, mask)
    folder = run_folder(run_dir)
    resumed = restore(folder, resume, identity)
    device = device_of(model)
    kept = kept_memory(settings.keep_memory, device)
    with PeakMemory(device) as peak, repeatable(seed, device), kept:
        run = _Run(model, task, method, settings, seed, mask, resumed)
        history = run.loop(identity, folder, progress, on_epoch).run()
    seconds = dict(run.seconds, train=sum(record.seconds for record in history))
    return UnlearnResult(
        model=run.model,
        history=history,
        seconds=seconds | {"total": sum(seconds.values())},
        peak_memory_mb=peak.megabytes,
        settings=settings,
        method=method,
        mask=run.mask,
        certificate=run.frozen.after(run.model) if run.frozen is not None else None,
    )


@dataclass(frozen=True)
class _Task:
    """The checked data, on the model's device."""

    forget: ImageSet
    retain: ImageSet | None
    test: ImageSet | None
    num_classes: int


class _Run:
    """The working copy with everything the loop needs: mask, plan, optimizer, certificate."""

    def __init__(
        self,
        original: nn.Module,
        task: _Task,
        method: str,
        settings: ClassifierSettings,
        seed: int,
        mask: SaliencyMask | None,
        resumed: Checkpoint | None,
    ) -> None:
        self.task, self.method, self.settings, self.seed = task, method, settings, seed
        self.resumed = resumed
        self.model = working_copy(original, settings)
        self.seconds = {"saliency": 0.0, "select": 0.0}
        if method == "retrain":
            reinitialise(self.model)
        self.optimizer = sgd(self.model, settings)
        self.mask = mask
        if resumed is not None:
            self.seconds = dict(resumed.seconds)
            self.optimizer.load_state_dict(resumed.optimizer)
            self.mask = whole_mask(self.optimizer.mask)
        elif mask is None and method in MASKED:
            self.mask = self._make_mask()
        if self.mask is not None:
            self.optimizer.set_mask(self.mask)
        self.frozen = None if self.mask is None else FreezeCertificate.before(original, self.mask)

    def _make_mask(self) -> SaliencyMask:
        started = time.perf_counter()
        if self.method == "random_mask":  # the control: as many weights, nothing measured
            saliency, which = Saliency(self.model), "random"
        else:
            saliency = measure(self.model, self.task.forget, self.settings)
            which = self.settings.which
        measured = time.perf_counter()
        mask = saliency.mask(self.settings.density, which=which, seed=self.seed)
        self.seconds["saliency"] = measured - started
        self.seconds["select"] = time.perf_counter() - measured
        return mask

    def loop(
        self,
        identity: dict[str, Any],
        folder: Path | None,
        progress: bool,
        on_epoch: OnEpoch | None,
    ) -> Loop:
        plan = self._plan()
        judged = self._judged()
        return Loop(
            title=self.method,
            model=self.model,
            optimizer=self.optimizer,
            plan=plan,
            settings=self.settings,
            seed=self.seed,
            identity=identity,
            probe=lambda: {name: self._share(name, data) for name, data in judged.items()},
            hint=self._hint(judged),
            hold_norm_stats=self.settings.hold_norm_stats,
            soft=self._soft(plan),
            folder=folder,
            resumed=self.resumed,
            seconds=self.seconds,
            progress=progress,
            on_epoch=on_epoch,
        )

    def _plan(self) -> Plan:
        if self.method in RANDOM_LABEL:
            return random_label_plan(
                self.task.forget, self.task.retain, self.settings, self.task.num_classes
            )
        if self.method == "ga":
            return plain_plan(self.task.forget, self.settings, ascent=True)
        assert self.task.retain is not None
        return plain_plan(self.task.retain, self.settings)

    def _soft(self, plan: Plan) -> SoftThreshold | None:
        if self.method != "salun_soft":
            return None
        return SoftThreshold(
            self.model,
            density=self.settings.density,
            anchor=self.settings.soft_anchor,
            total_steps=self.settings.epochs * plan.steps,
        )

    def _judged(self) -> dict[str, ImageSet]:
        """The images of the live readout by the share they tell; empty where it is left out."""
        count = self.settings.readout_images
        sets = {"ua": self.task.forget, "ra": self.task.retain, "ta": self.task.test}
        return {
            name: data.head(count, seed=self.seed)
            for name, data in sets.items()
            if data is not None and count > 0
        }

    def _share(self, name: str, data: ImageSet) -> float:
        accuracy = outputs(self.model, data).accuracy
        return 100.0 - accuracy if name == "ua" else accuracy

    def _hint(self, judged: dict[str, ImageSet]) -> Callable[[EpochRecord], str | None]:
        """Of the first epoch alone: nothing is judged for a run that is past it."""
        if self.method == "retrain" or self.resumed is not None or not judged:
            return lambda record: None
        ua_before = self._share("ua", judged["ua"])

        def hint(record: EpochRecord) -> str | None:
            if record.epoch != 1 or record.ua is None or abs(record.ua - ua_before) >= UNMOVED:
                return None
            wider = " or a larger density" if self.method in MASKED else ""
            return (
                f"UA has not moved in the first epoch ({ua_before:.1f} -> {record.ua:.1f} %): "
                f"try a larger lr, e.g. lr={3 * self.settings.lr:.3g}{wider}"
            )

        return hint


def measure(model: nn.Module, forget: ImageSet, settings: ClassifierSettings) -> Saliency:
    """Saliency of the forget loss: one pass in eval mode, in fp32, no optimizer step."""
    batches = Batches(forget, settings.batch_size, channels_last=settings.channels_last)
    return Saliency.from_data(
        model, batches, F.cross_entropy, score=settings.score, weighting=settings.weighting
    )


def reinitialise(model: nn.Module) -> None:
    """Fresh weights and statistics in every module, drawn from torch's default generator.

    Uses each module's ``reset_parameters``; a module that owns parameters without having one is
    an error, as it would keep what it learned.
    """
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"method 'retrain' cannot reinitialise module {name!r} "
                f"({type(module).__name__}): it owns parameters and has no reset_parameters(). "
                "Build a fresh model and use train_classifier on the retain data"
            )


def _checked(
    model: nn.Module,
    forget: Images,
    retain: Images | None,
    test: Images | None,
    num_classes: int | None,
    method: str,
) -> _Task:
    """All data converted and checked; nothing of the model has changed when this raises."""
    sets = {"forget": as_image_set(forget, "forget")}
    for name, data in (("retain", retain), ("test", test)):
        if data is not None:
            sets[name] = as_image_set(data, name)
    for name, images in sets.items():
        check_not_empty(name, images)
        check_same_shape("forget", sets["forget"], name, images)
    classes = class_count(model, sets["forget"], "forget")
    if num_classes is not None and num_classes != classes:
        raise ValueError(
            f"num_classes is {num_classes} and the model tells {classes} classes apart; leave "
            "num_classes out or fix the model's head"
        )
    for name, images in sets.items():
        check_labels(name, images, classes)
    if retain is None:
        _without_retain(method)
    device = device_of(model)
    sets = {name: images.to(device) for name, images in sets.items()}
    return _Task(sets["forget"], sets.get("retain"), sets.get("test"), classes)


def _without_retain(method: str) -> None:
    if method in ("ft", "retrain"):
        raise ValueError(f"method {method!r} trains on retain data; retain must not be None")
    if method in RANDOM_LABEL:
        warnings.warn(
            f"{method} without retain data: accuracy on everything else is likely to collapse; "
            "pass at least a sample of the data to keep",
            stacklevel=4,
        )


def _check_mask(model: nn.Module, mask: SaliencyMask | None, method: str) -> None:
    if mask is None:
        return
    if method not in MASKABLE:
        raise ValueError(
            f"method {method!r} takes no mask; those that do: {', '.join(MASKABLE)} "
            "(rl with a mask is salun)"
        )
    mask.check({name: p for name, p in model.named_parameters() if p.requires_grad})


def _identity(
    model: nn.Module,
    task: _Task,
    method: str,
    settings: ClassifierSettings,
    seed: int,
    mask: SaliencyMask | None,
) -> dict[str, Any]:
    """What makes two runs the same run, for resuming."""
    return {
        "method": method,
        "seed": seed,
        **decisive(settings),
        "model": model_digest(model),
        "forget": data_digest(task.forget),
        "retain": data_digest(task.retain),
        "given_mask": None if mask is None else mask.fingerprint,
    }
