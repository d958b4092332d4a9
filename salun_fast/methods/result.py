"""What a training or unlearning run hands back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from salun_fast.evaluation.certificate import FreezeCertificate
from salun_fast.mask import SaliencyMask
from salun_fast.methods.settings import ClassifierSettings, TrainSettings


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. ua, ra, ta: percent, None where there is no such set; each on at most
    ``readout_images`` images. loss: mean over the images. seconds: of the steps alone."""

    epoch: int
    lr: float
    loss: float
    images_per_second: float
    seconds: float
    ua: float | None = None
    ra: float | None = None
    ta: float | None = None
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """model: the trained copy, in eval mode; seconds: "train" and "total"."""

    model: nn.Module
    history: tuple[EpochRecord, ...]
    seconds: dict[str, float]
    peak_memory_mb: float
    settings: TrainSettings


@dataclass(frozen=True)
class UnlearnResult(TrainResult):
    """model: the unlearned copy, in eval mode. mask, certificate: None for methods without mask.

    seconds: "saliency", "select", "train" and their sum "total", the paper's RTE with the mask's
    cost counted in; live readout, checkpoints and certificate are not in it.
    """

    settings: ClassifierSettings
    method: str
    mask: SaliencyMask | None
    certificate: FreezeCertificate | None
