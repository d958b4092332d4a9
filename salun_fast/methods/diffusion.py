"""What both ways of unlearning a diffusion model share: the mask, the run, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast import bits
from salun_fast.distributed import whole_mask
from salun_fast.evaluation.certificate import FreezeCertificate
from salun_fast.mask import SaliencyMask
from salun_fast.methods.checkpoint import Checkpoint
from salun_fast.methods.diffusion_settings import StepSettings, UnlearnSettings
from salun_fast.methods.step_loop import Loss, OnSnapshot, OnStep, StepLoop, StepRecord
from salun_fast.names import match
from salun_fast.optimizer import SalUnOptimizer
from salun_fast.saliency import Saliency

MASKED = ("salun", "random_mask")


@dataclass(frozen=True)
class DiffusionTrainResult:
    """unet: the trained copy, in eval mode. averaged: the moving average of what was trained, by
    parameter name; None without ``ema_decay``. seconds: "train" and "total"."""

    unet: Any
    averaged: dict[str, Tensor] | None
    history: tuple[StepRecord, ...]
    seconds: dict[str, float]
    peak_memory_mb: float
    settings: StepSettings


@dataclass(frozen=True)
class DiffusionResult(DiffusionTrainResult):
    """unet: the unlearned copy. mask, certificate: None for methods without mask. seconds:
    "encode" (latents and prompts, where there are any), "saliency", "select", "train" and their
    sum "total", the run time with the mask's cost counted in; checkpoints and snapshots are not."""

    settings: UnlearnSettings
    method: str
    mask: SaliencyMask | None
    certificate: FreezeCertificate | None


@dataclass(frozen=True)
class Watch:
    """How a run tells of itself: a bar, records, snapshots of the model every so many steps."""

    progress: bool = True
    on_step: OnStep | None = None
    on_snapshot: OnSnapshot | None = None
    snapshot_every: int = 0

    def __post_init__(self) -> None:
        if self.snapshot_every < 0 or (self.on_snapshot is not None and not self.snapshot_every):
            raise ValueError(
                "snapshot_every must be at least 1 where on_snapshot is given, found "
                f"{self.snapshot_every}"
            )


@dataclass
class MaskedRun:
    """A working copy with the mask and the optimizer of a method, ready to run an objective.

    losses: one pass over the forget data in eval mode, giving each batch's saliency loss.
    names: the parameters that may move; scored: those among which the mask is chosen.
    """

    unet: Any
    settings: UnlearnSettings
    method: str
    seed: int
    losses: Callable[[], Iterable[Tensor]]
    names: Collection[str]
    scored: Collection[str]
    mask: SaliencyMask | None
    resumed: Checkpoint | None

    def __post_init__(self) -> None:
        self.seconds = {"saliency": 0.0, "select": 0.0}
        if self.mask is None and self.method in MASKED and self.resumed is None:
            self.mask = self._selected()
        let_train(self.unet, self.names)
        self.optimizer = adam(self.unet, self.settings)
        if self.resumed is not None:
            self.seconds = dict(self.resumed.seconds)
            self.optimizer.load_state_dict(self.resumed.optimizer)
            self.mask = whole_mask(self.optimizer.mask)
        elif self.mask is not None:
            self.optimizer.set_mask(self.mask)

    def _selected(self) -> SaliencyMask:
        started = time.perf_counter()
        let_train(self.unet, self.scored)
        saliency = Saliency(self.unet, score=self.settings.score)
        which = "random"  # the control: as many weights, nothing measured
        if self.method != "random_mask":
            which = self.settings.which
            self._measure(saliency)
        measured = time.perf_counter()
        mask = saliency.mask(self.settings.density, which=which, seed=self.seed)
        self.seconds["saliency"] = measured - started
        self.seconds["select"] = time.perf_counter() - measured
        return _restricted(mask, self.names)

    def _measure(self, saliency: Saliency) -> None:
        self.unet.eval()
        with saliency.measure(clip_norm=self.settings.saliency_clip):
            for loss in self.losses():
                loss.backward()  # type: ignore[no-untyped-call]

    def loop(
        self,
        objective: Callable[[int], Loss],
        identity: dict[str, Any],
        folder: Path | None,
        watch: Watch,
    ) -> StepLoop:
        return StepLoop(
            title=self.method,
            model=self.unet,
            optimizer=self.optimizer,
            objective=objective,
            settings=self.settings,
            seed=self.seed,
            identity=identity,
            folder=folder,
            resumed=self.resumed,
            seconds=self.seconds,
            **vars(watch),
        )

    def certificate(self, original: nn.Module) -> FreezeCertificate | None:
        """That every weight outside the mask, and every parameter that could not move, is the
        original's to the bit."""
        if self.mask is None:
            return None
        return FreezeCertificate.before(original, _widened(self.mask, original)).after(self.unet)


def fitted_mask(
    mask: SaliencyMask | None, method: str, unet: nn.Module, names: Collection[str]
) -> SaliencyMask | None:
    """A given mask's entries for the parameters ``names``, under the UNet's names for them.

    It may cover others of the UNet as well, which then stay frozen. Raises ValueError for a method
    without mask, and for a mask of another model.
    """
    if mask is None:
        return None
    if method not in MASKED:
        raise ValueError(f"mask is for the methods {', '.join(MASKED)}, found method {method!r}")
    parameters = dict(unet.named_parameters())
    covered = match(parameters, mask.words)
    meant = {n: p for n, p in parameters.items() if n in covered or n in names}
    return _restricted(mask.aligned_to(meant), names)


def adam(unet: nn.Module, settings: StepSettings) -> SalUnOptimizer:
    """Adam without decay over what requires a gradient; NaN gradients stop the run before they
    reach the weights."""
    return SalUnOptimizer(
        [(name, p) for name, p in unet.named_parameters() if p.requires_grad],
        torch.optim.Adam,
        lr=settings.lr,
        error_if_nonfinite=True,
    )


def open_names(unet: nn.Module) -> list[str]:
    """The parameters that require a gradient."""
    return [name for name, parameter in unet.named_parameters() if parameter.requires_grad]


def let_train(unet: nn.Module, names: Collection[str]) -> None:
    """Only the parameters of these names require gradients; those of the rest are never made."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name in names)


def averaged(loop: StepLoop) -> dict[str, Tensor] | None:
    """The moving average of a finished loop by parameter name."""
    if loop.ema is None:
        return None
    return dict(zip(open_names(loop.model), loop.ema.shadow_params, strict=True))


def _restricted(mask: SaliencyMask, names: Collection[str]) -> SaliencyMask:
    """The mask's entries for these parameters."""
    kept = [name for name in mask.names if name in names]
    return SaliencyMask.from_words(
        {name: mask.words[name] for name in kept},
        {name: mask.shapes[name] for name in kept},
        score=mask.score,
    )


def _widened(mask: SaliencyMask, model: nn.Module) -> SaliencyMask:
    """The mask with every other parameter of the model in it, frozen."""
    parameters = dict(model.named_parameters())
    return SaliencyMask.from_words(
        {n: mask.words[n] if n in mask.words else _no_bits(p) for n, p in parameters.items()},
        {name: p.shape for name, p in parameters.items()},
        score=mask.score,
    )


def _no_bits(parameter: Tensor) -> Tensor:
    return torch.zeros(bits.word_count(parameter.numel()), dtype=torch.int32)
