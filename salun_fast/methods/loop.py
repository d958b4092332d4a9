"""The one training loop: every method is this loop with other batches, mask and switches."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast.methods import checkpoint as checkpoints
from salun_fast.methods.checkpoint import Checkpoint
from salun_fast.methods.plans import Plan
from salun_fast.methods.readout import Readout
from salun_fast.methods.result import EpochRecord
from salun_fast.methods.settings import TrainSettings
from salun_fast.methods.soft import SoftThreshold
from salun_fast.optimizer import SalUnOptimizer

NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

OnEpoch = Callable[[EpochRecord], None]


@dataclass
class Loop:
    """One run, ready to go; ``run`` returns the record of every epoch.

    probe: "ua", "ra", "ta" in percent of the model as it is, for the readout; hint: what to tell
    the user after an epoch; soft: SalUn-soft's proximal step; folder: where checkpoints go;
    resumed: the checkpoint to continue; seconds: what was spent before, kept in checkpoints.
    """

    title: str
    model: nn.Module
    optimizer: SalUnOptimizer
    plan: Plan
    settings: TrainSettings
    seed: int
    identity: dict[str, Any]
    probe: Callable[[], dict[str, float]]
    hint: Callable[[EpochRecord], str | None] = lambda record: None
    hold_norm_stats: bool = False
    soft: SoftThreshold | None = None
    folder: Path | None = None
    resumed: Checkpoint | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    progress: bool = True
    on_epoch: OnEpoch | None = None

    def run(self) -> tuple[EpochRecord, ...]:
        self.generator = torch.Generator().manual_seed(self.seed)
        history = self._restored()
        epochs = self.settings.epochs
        with Readout(self.title, total=epochs * self.plan.steps, enabled=self.progress) as readout:
            for epoch in range(len(history), epochs):
                record = self._epoch(epoch, readout)
                history.append(record)
                if self.folder is not None:
                    self._save(tuple(history))
                readout.report(f"epoch {record.epoch}/{epochs}", _words(record), record.hint)
                if self.on_epoch is not None:
                    self.on_epoch(record)
        self.model.eval()
        return tuple(history)

    def _epoch(self, epoch: int, readout: Readout) -> EpochRecord:
        started = time.perf_counter()
        self._train_mode()
        if self.soft is not None:
            self.soft.start_epoch()
        first = epoch * self.plan.steps
        losses: list[Tensor] = []
        sizes: list[int] = []
        for index, (images, labels) in enumerate(self.plan.batches(self.generator)):
            self._set_lr(first + index)
            losses.append(self._step(images, labels))
            sizes.append(len(labels))
            if self.soft is not None:
                self.soft.after_step(first + index)
            readout.step(first + index + 1)
        loss = _weighted_mean(losses, sizes)
        seconds = time.perf_counter() - started
        record = EpochRecord(
            epoch=epoch + 1,
            lr=learning_rate(self.settings, first, self.plan.steps),
            loss=loss,
            images_per_second=sum(sizes) / seconds,
            seconds=seconds,
        )
        record = replace(record, **self.probe())  # type: ignore[arg-type]
        return replace(record, hint=self.hint(record))

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update; returns the detached cross-entropy (0-dim)."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"
        ):
            logits = self._logits(images)
        loss = F.cross_entropy(logits.float(), labels)
        (-loss if self.plan.ascent else loss).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _logits(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self.model(images)
        except ValueError as error:
            if len(images) == 1 and "more than 1 value per channel" in str(error):
                raise ValueError(
                    "a batch holds a single image, too few for the batch statistics of this "
                    "model's norm layers; use another batch_size, or hold_norm_stats=True where "
                    "models are unlearned"
                ) from error
            raise
        return logits

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step, self.plan.steps)

    def _train_mode(self) -> None:
        self.model.train()
        if self.hold_norm_stats:
            for module in self.model.modules():
                if isinstance(module, NORM_LAYERS):
                    module.eval()

    def _restored(self) -> list[EpochRecord]:
        if self.resumed is None:
            return []
        self.model.load_state_dict(self.resumed.model)
        self.optimizer.load_state_dict(self.resumed.optimizer)
        self.generator.set_state(self.resumed.extra["generator"])
        _set_rng(self.resumed.extra["rng"], _device(self.model))
        return [EpochRecord(**record) for record in self.resumed.history]

    def _save(self, history: tuple[EpochRecord, ...]) -> None:
        assert self.folder is not None
        Checkpoint(
            identity=self.identity,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=[record.as_dict() for record in history],
            seconds=self.seconds,
            extra={
                "generator": self.generator.get_state(),
                "rng": _get_rng(_device(self.model)),
            },
        ).save(self.folder)


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0), a function of nothing else, so resuming is exact."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "multistep":
        epoch = step // steps_per_epoch
        return settings.lr * settings.gamma ** sum(m <= epoch for m in settings.milestones)
    if settings.schedule == "cosine":
        share = (step - warmup) / max(settings.epochs * steps_per_epoch - warmup, 1)
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * share))
    return settings.lr


@contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's own generators (dropout, initialisation) inside, and puts them back after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def run_folder(run_dir: str | os.PathLike[str] | None) -> Path | None:
    """Where the checkpoints of a run folder lie."""
    return None if run_dir is None else Path(run_dir) / "checkpoints"


def restore(folder: Path | None, resume: bool, identity: dict[str, Any]) -> Checkpoint | None:
    if not resume:
        return None
    if folder is None:
        raise ValueError("resume=True needs run_dir, the folder of the run to continue")
    return checkpoints.load(folder, identity)


def _words(record: EpochRecord) -> str:
    """What the readout says of an epoch."""
    shares = ((name.upper(), getattr(record, name)) for name in ("ua", "ra", "ta"))
    parts = [f"{name} {value:.1f} %" for name, value in shares if value is not None]
    parts += [f"loss {record.loss:.4f}", f"{record.images_per_second:,.0f} images/s"]
    return "  ".join(parts)


def _weighted_mean(losses: Sequence[Tensor], sizes: Sequence[int]) -> float:
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((torch.stack(list(losses)).double().cpu() * weights).sum() / weights.sum())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _get_rng(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_rng(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
