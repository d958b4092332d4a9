"""The one loop of diffusion models: steps instead of epochs, everything a function of the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast._extras import need
from salun_fast._score_sums import first_nonfinite, peak
from salun_fast.diffusion.draws import seed_of
from salun_fast.methods.checkpoint import Checkpoint
from salun_fast.methods.diffusion_settings import StepSettings
from salun_fast.methods.readout import Readout
from salun_fast.optimizer import NonfiniteGradientError, SalUnOptimizer


@dataclass(frozen=True)
class Loss:
    """total: 0-dim, to be differentiated. parts: its terms by name, detached, 0-dim."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class StepRecord:
    """Means over the steps since the record before. step: steps taken so far. grad_norm: before
    clipping; None without ``max_grad_norm``. seconds: of these steps alone."""

    step: int
    lr: float
    loss: float
    parts: dict[str, float]
    grad_norm: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


OnStep = Callable[[StepRecord], None]
OnSnapshot = Callable[[int, nn.Module], None]


@dataclass
class StepLoop:
    """One run, ready to go; ``run`` returns its records.

    objective: the loss of batch ``number``, counted over the whole run; whatever it draws is a
    function of that number. on_snapshot: called with the steps taken and the model, in eval mode,
    before the first step, every ``snapshot_every`` steps and after the last. folder, resumed,
    seconds: as in ``Loop``.
    """

    title: str
    model: nn.Module
    optimizer: SalUnOptimizer
    objective: Callable[[int], Loss]
    settings: StepSettings
    seed: int
    identity: dict[str, Any]
    folder: Path | None = None
    resumed: Checkpoint | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    progress: bool = True
    on_step: OnStep | None = None
    on_snapshot: OnSnapshot | None = None
    snapshot_every: int = 0

    def run(self) -> tuple[StepRecord, ...]:
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.ema = self._averaged()
        history = self._restored()
        first = history[-1].step if history else 0
        if first == 0:
            self._snapshot(0)
        window = _Window()
        with Readout(self.title, total=self.settings.steps, enabled=self.progress) as readout:
            for step in range(first, self.settings.steps):
                started = time.perf_counter()
                window.add(*self._step(step), time.perf_counter() - started)
                readout.step(step + 1)
                if self._reports(step + 1):
                    history.append(window.record(step + 1, self._lr(step)))
                    readout.status(_words(history[-1]))
                    if self.on_step is not None:
                        self.on_step(history[-1])
                    window = _Window()
                self._snapshot(step + 1)
                if self._checkpoints(step + 1):
                    self._save(history)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        return tuple(history)

    def _step(self, step: int) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """One update; total loss, its parts and the gradient's norm."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        batches = self.settings.gradient_accumulation
        losses = [self._backward(step * batches + index, batches) for index in range(batches)]
        norm = self._clip()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self._trained)
        parts = {
            name: torch.stack([loss.parts[name] for loss in losses]).mean()
            for name in losses[0].parts
        }
        return torch.stack([loss.total.detach() for loss in losses]).mean(), parts, norm

    def _backward(self, number: int, batches: int) -> Loss:
        torch.manual_seed(seed_of(self.seed, "dropout", number))
        device = self._trained[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss = self.objective(number)
        (loss.total / batches).backward()  # type: ignore[no-untyped-call]
        return loss

    def _clip(self) -> Tensor | None:
        """Scale the full gradient, before the optimizer masks it (SalUn's diffusion loop)."""
        if self.settings.max_grad_norm is None:
            return None
        try:
            return self.optimizer.clip_grad_norm_(
                self.settings.max_grad_norm, error_if_nonfinite=True
            )
        except RuntimeError as error:
            grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
            name = first_nonfinite((n, peak(g)) for n, g in grads.items())
            if name is None:
                raise
            raise NonfiniteGradientError(
                f"the gradient of {name!r} holds NaN or infinity; nothing was changed by this "
                "step. Lower lr, or set max_grad_norm=None if such values lie outside the mask"
            ) from error

    def _lr(self, step: int) -> float:
        settings = self.settings
        if step < settings.warmup_steps:
            return settings.lr * (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return settings.lr
        share = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * share))

    def _reports(self, done: int) -> bool:
        return done % self.settings.report_every == 0 or self._checkpoints(done)

    def _checkpoints(self, done: int) -> bool:
        """Also where there is no folder: records must not depend on that."""
        return done % self.settings.checkpoint_every == 0 or done == self.settings.steps

    def _snapshot(self, done: int) -> None:
        if self.on_snapshot is None or not self.snapshot_every:
            return
        if done % self.snapshot_every == 0 or done == self.settings.steps:
            self.model.eval()
            self.on_snapshot(done, self.model)

    def _averaged(self) -> Any:
        """diffusers' moving average of the trained weights, or None."""
        if self.settings.ema_decay is None:
            return None
        need("diffusers", "the moving average of weights (ema_decay)", extra="diffusion")
        from diffusers.training_utils import EMAModel

        return EMAModel(self._trained, decay=self.settings.ema_decay)

    # --- checkpoints ------------------------------------------------------------------------------

    def _restored(self) -> list[StepRecord]:
        if self.resumed is None:
            return []
        self.model.load_state_dict(self.resumed.model, strict=False)
        self.optimizer.load_state_dict(self.resumed.optimizer)
        if self.ema is not None:
            self.ema.load_state_dict(self.resumed.extra["ema"])
            self.ema.to(device=self._trained[0].device)
        return [StepRecord(**record) for record in self.resumed.history]

    def _save(self, history: list[StepRecord]) -> None:
        """Only weights that train: the others are the original's, whose digest is kept."""
        if self.folder is None:
            return
        trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        Checkpoint(
            identity=self.identity,
            model=trained,
            optimizer=self.optimizer.state_dict(),
            history=[record.as_dict() for record in history],
            seconds=self.seconds,
            extra={} if self.ema is None else {"ema": self.ema.state_dict()},
        ).save(self.folder)


class _Window:
    """The steps since the last record; losses stay tensors until it is written."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._losses: list[Tensor] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._norms: list[Tensor] = []

    def add(
        self, loss: Tensor, parts: dict[str, Tensor], norm: Tensor | None, seconds: float
    ) -> None:
        self._seconds += seconds
        self._losses.append(loss)
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(value)
        if norm is not None:
            self._norms.append(norm)

    def record(self, step: int, lr: float) -> StepRecord:
        return StepRecord(
            step=step,
            lr=lr,
            loss=_mean(self._losses),
            parts={name: _mean(values) for name, values in self._parts.items()},
            grad_norm=_mean(self._norms) if self._norms else None,
            seconds=self._seconds,
        )


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).double().mean())


def _words(record: StepRecord) -> str:
    parts = [f"{name} {value:.4g}" for name, value in record.parts.items()]
    return "  ".join([f"loss {record.loss:.4g}", *parts])
