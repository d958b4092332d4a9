"""Class-conditional diffusion: training, and forgetting a class (SalUn, section 4, eq. 7)."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from salun_fast.data import ImageSet
from salun_fast.data.images import Images
from salun_fast.diffusion.classes import check_class, class_count, image_set
from salun_fast.diffusion.denoising import Denoising, reduced
from salun_fast.diffusion.noisy import NoisyBatch, NoisyBatches
from salun_fast.digests import data_digest, model_digest
from salun_fast.evaluation.resources import PeakMemory
from salun_fast.mask import SaliencyMask
from salun_fast.methods.diffusion import (
    DiffusionResult,
    DiffusionTrainResult,
    MaskedRun,
    Watch,
    adam,
    averaged,
    fitted_mask,
    open_names,
)
from salun_fast.methods.diffusion_settings import (
    DDPMSettings,
    StepSettings,
    resolve_ddpm,
)
from salun_fast.methods.forgetting import Forgetting
from salun_fast.methods.inputs import device_of
from salun_fast.methods.loop import repeatable, restore, run_folder
from salun_fast.methods.settings import override
from salun_fast.methods.step_loop import Loss, OnSnapshot, OnStep, StepLoop


def unlearn_ddpm(
    unet: Any,
    scheduler: Any,
    forget: Images,
    retain: Images,
    *,
    forget_class: int,
    replacement_class: int | None = None,
    alpha: float | None = None,
    method: str = "salun",
    preset: str = "paper",
    mask: SaliencyMask | None = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: OnStep | None = None,
    on_snapshot: OnSnapshot | None = None,
    snapshot_every: int = 0,
    **overrides: Any,
) -> DiffusionResult:
    """Make a copy of a class-conditional UNet forget a class; the UNet passed is left alone.

    Minimises ‖ε(x_t, t, c_f) − stopgrad ε(x_t, t, c')‖² on forget images plus α times the ordinary
    denoising loss on retain images, moving only the most salient weights. The teacher is the model
    as it is at each step.

    unet: ``UNet2DModel`` with ``num_class_embeds`` = C + 1, the last of them the null class.
    scheduler: the one it was trained with (epsilon or v_prediction).
    forget, retain: an ImageSet, Dataset, DataLoader or pair (images [n, c, h, w], labels int64
        [n]), uint8 or in [-1, 1]; forget images are all of ``forget_class``, retain images none.
    replacement_class: c'; by default as the preset says.
    alpha: weight of the retain loss; fields of DDPMSettings may be given as ``overrides``.
    method: "salun", "random_mask" (the control: as many weights, drawn at random), "rl" (the same
        losses, all weights move) or "ga" (gradient ascent on the forget images' denoising loss,
        without retain loss).
    preset: "paper" or "reference". mask: use this one instead of measuring saliency.
    run_dir, resume: checkpoints are written to ``run_dir/checkpoints``; with ``resume`` the run
        continues from the last one, bit-equal to one that was never interrupted.
    on_step: called with each StepRecord. on_snapshot: called with the number of steps taken and
        the model every ``snapshot_every`` steps, before the first and after the last.

    Runs on the UNet's device. Raises ValueError or TypeError before anything is trained.
    """
    if alpha is not None:
        overrides["alpha"] = alpha
    settings = resolve_ddpm(method, preset, overrides)
    task = _checked(unet, scheduler, forget, retain, forget_class, replacement_class, settings)
    names = open_names(unet)
    mask = fitted_mask(mask, method, unet, names)
    watch = Watch(progress, on_step, on_snapshot, snapshot_every)
    identity = _identity(unet, task, method, settings, seed, mask)
    folder = run_folder(run_dir)
    resumed = restore(folder, resume, identity)
    device = device_of(unet)
    with PeakMemory(device) as peak, repeatable(seed, device):
        copied = copy.deepcopy(unet)
        forgetting = _Forgetting(copied, task, settings, seed)
        forgetting.check_prediction(copied)
        run = MaskedRun(
            copied, settings, method, seed, forgetting.saliency_losses, names, names, mask, resumed
        )
        objective = forgetting.ascent if method == "ga" else forgetting
        loop = run.loop(objective, identity, folder, watch)
        history = loop.run()
    seconds = dict(run.seconds, train=sum(record.seconds for record in history))
    return DiffusionResult(
        unet=copied,
        averaged=averaged(loop),
        history=history,
        seconds=seconds | {"total": sum(seconds.values())},
        peak_memory_mb=peak.megabytes,
        settings=settings,
        method=method,
        mask=run.mask,
        certificate=run.certificate(unet),
    )


def train_ddpm(
    unet: Any,
    scheduler: Any,
    data: Images,
    *,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: OnStep | None = None,
    **overrides: Any,
) -> DiffusionTrainResult:
    """Train a copy of a class-conditional UNet as it is, with classifier-free guidance in mind.

    The null class stands in for the label in a share ``condition_dropout`` of the samples.
    Arguments as for ``unlearn_ddpm``; overrides: fields of StepSettings.
    """
    settings = override(StepSettings(), overrides)
    checked = image_set(data, "data", unet)
    denoising = Denoising(scheduler)
    device = device_of(unet)
    identity = {
        "method": "train_ddpm",
        "seed": seed,
        **asdict(settings),
        "prediction_type": denoising.prediction_type,
        "noise": denoising.noise_digest,
        "model": model_digest(unet),
        "data": data_digest(checked),
    }
    folder = run_folder(run_dir)
    resumed = restore(folder, resume, identity)
    with PeakMemory(device) as peak, repeatable(seed, device):
        trained = copy.deepcopy(unet).requires_grad_(True)
        retaining = _Retaining(trained, checked, denoising, settings, seed, "mean")
        loop = StepLoop(
            title="train",
            model=trained,
            optimizer=adam(trained, settings),
            objective=lambda number: _alone("denoise", retaining(number)),
            settings=settings,
            seed=seed,
            identity=identity,
            folder=folder,
            resumed=resumed,
            progress=progress,
            on_step=on_step,
        )
        history = loop.run()
    seconds = sum(record.seconds for record in history)
    return DiffusionTrainResult(
        unet=trained,
        averaged=averaged(loop),
        history=history,
        seconds={"train": seconds, "total": seconds},
        peak_memory_mb=peak.megabytes,
        settings=settings,
    )


@dataclass(frozen=True)
class _Task:
    """The checked data and what is to replace the forgotten class (None: any other)."""

    forget: ImageSet
    retain: ImageSet
    forget_class: int
    replacement: int | None
    classes: int
    denoising: Denoising


class _Retaining:
    """The ordinary denoising loss, with the condition dropped now and then."""

    def __init__(
        self,
        unet: Any,
        data: ImageSet,
        denoising: Denoising,
        settings: StepSettings,
        seed: int,
        reduction: str,
    ) -> None:
        self._unet, self._dropout, self._reduction = unet, settings.condition_dropout, reduction
        self._data = data.to(device_of(unet))
        self._null = class_count(unet)
        self._batches = _noisy(unet, self._data, denoising, settings, seed, "retain").sequence()

    def __call__(self, number: int) -> Tensor:
        batch = self._batches(number)
        labels = self._data.labels[batch.indices].long()
        dropped = torch.rand(len(labels), generator=batch.generator) < self._dropout
        labels = labels.masked_fill(dropped.to(labels.device), self._null)
        said = _said(self._unet, batch.noisy, batch.timesteps, labels)
        return reduced(said, batch.target, self._reduction)


class _Forgetting(Forgetting):
    """A class: conditions are labels."""

    def __init__(self, unet: Any, task: _Task, settings: DDPMSettings, seed: int) -> None:
        forget = task.forget.to(device_of(unet))
        super().__init__(
            settings,
            _noisy(unet, forget, task.denoising, settings, seed, "forget"),
            forget_reduction=settings.forget_reduction,
            saliency_reduction="pixel_sum",
        )
        self._unet, self._task = unet, task
        self._retain = _Retaining(
            unet, task.retain, task.denoising, settings, seed, settings.retain_reduction
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return _said(self._unet, noisy, timesteps, condition)

    def forgotten(self, batch: NoisyBatch) -> Tensor:
        return torch.full_like(batch.timesteps, self._task.forget_class)

    def nothing(self, batch: NoisyBatch) -> Tensor:
        return torch.full_like(batch.timesteps, self._task.classes)

    def taught(self, batch: NoisyBatch) -> Tensor:
        return self.predict(batch.noisy, batch.timesteps, self._replacements(batch))

    def retained(self, number: int) -> Tensor:
        return self._retain(number)

    def _replacements(self, batch: NoisyBatch) -> Tensor:
        """c', or for each sample any class but the forgotten one."""
        task = self._task
        if task.replacement is not None:
            return torch.full_like(batch.timesteps, task.replacement)
        drawn = torch.randint(task.classes - 1, (len(batch.indices),), generator=batch.generator)
        return (drawn + (drawn >= task.forget_class)).to(batch.timesteps)


def _said(unet: Any, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    prediction: Tensor = unet(noisy.to(unet.dtype), timesteps, class_labels=labels).sample
    return prediction


def _noisy(
    unet: Any,
    data: ImageSet,
    denoising: Denoising,
    settings: StepSettings,
    seed: int,
    purpose: str,
) -> NoisyBatches:
    def clean(indices: Tensor, generator: torch.Generator) -> Tensor:
        return data.batch(indices)[0].float()

    return NoisyBatches(
        clean,
        len(data),
        denoising,
        device_of(unet),
        settings.batch_size,
        seed,
        purpose,
        settings.antithetic,
    )


def _alone(name: str, loss: Tensor) -> Loss:
    return Loss(loss, {name: loss.detach()})


def _checked(
    unet: Any,
    scheduler: Any,
    forget: Images,
    retain: Images,
    forget_class: int,
    replacement_class: int | None,
    settings: DDPMSettings,
) -> _Task:
    denoising = Denoising(scheduler)
    classes = class_count(unet)
    check_class("forget_class", forget_class, classes)
    if replacement_class is not None:
        check_class("replacement_class", replacement_class, classes)
        if replacement_class == forget_class:
            raise ValueError(
                f"replacement_class and forget_class are both {forget_class}; the forgotten class "
                "must be taught to look like another one"
            )
    elif settings.replacement == "next":
        replacement_class = (forget_class + 1) % classes
    forget_set = image_set(forget, "forget", unet)
    retain_set = image_set(retain, "retain", unet)
    others = int((forget_set.labels != forget_class).sum())
    if others:
        raise ValueError(
            f"forget must hold images of class {forget_class} only, found {others} of other "
            "classes; pass those as retain"
        )
    kept = int((retain_set.labels == forget_class).sum())
    if kept:
        raise ValueError(
            f"retain holds {kept} images of class {forget_class}, which is to be forgotten; take "
            "them out, or they teach it again"
        )
    return _Task(forget_set, retain_set, forget_class, replacement_class, classes, denoising)


def _identity(
    unet: Any,
    task: _Task,
    method: str,
    settings: DDPMSettings,
    seed: int,
    mask: SaliencyMask | None,
) -> dict[str, Any]:
    """What must be the same for a resumed run."""
    return {
        "method": method,
        "seed": seed,
        **asdict(settings),
        "forget_class": task.forget_class,
        "replacement_class": task.replacement,
        "prediction_type": task.denoising.prediction_type,
        "noise": task.denoising.noise_digest,
        "model": model_digest(unet),
        "forget": data_digest(task.forget),
        "retain": data_digest(task.retain),
        "mask": None if mask is None else mask.fingerprint,
    }
