"""Settings of training and unlearning, and the two presets that are never mixed silently."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from salun_fast.data.batches import AUGMENTATIONS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

METHODS = ("salun", "salun_soft", "random_mask", "rl", "ft", "ga", "retrain")
MASKED = ("salun", "random_mask")
RANDOM_LABEL = ("salun", "salun_soft", "random_mask", "rl")
SCORES = ("abs_of_sum", "sum_of_abs", "sum_of_squares", "per_sample")


def one_of(settings: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")


def at_least(settings: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, found {value}")


@dataclass(frozen=True)
class TrainSettings:
    """SGD with momentum over epochs of batches; defaults are those of SalUn's source models.

    lr: peak learning rate. schedule: "multistep" (times ``gamma`` at each epoch in
    ``milestones``), "cosine" (to 0 over all steps) or "constant"; ``warmup_epochs`` of linear
    rise before. augment: "none", "crop" or "flip_crop" ("flip_crop" is the paper's for CIFAR).
    precision: "fp32", or "bf16" for autocast of the forward pass; weights, gradients and saliency
    stay fp32. channels_last: memory format of images and convolutions. readout_images: at most
    so many images of each set are judged for the live readout; its time is not counted.
    """

    epochs: int = 182
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    schedule: str = "multistep"
    milestones: tuple[int, ...] = (91, 136)
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    augment: str = "none"
    precision: str = "fp32"
    channels_last: bool = True
    readout_images: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # YAML gives lists
        at_least(self, 1, "epochs", "batch_size", "readout_images")
        at_least(self, 0, "momentum", "weight_decay", "gamma", "warmup_epochs")
        if not self.lr > 0:
            raise ValueError(f"lr must be greater than 0, found {self.lr}")
        one_of(self, "schedule", ("multistep", "cosine", "constant"))
        one_of(self, "precision", ("fp32", "bf16"))
        one_of(self, "augment", AUGMENTATIONS)


@dataclass(frozen=True)
class ClassifierSettings(TrainSettings):
    """Unlearning a classifier; see SalUn, section 4 and appendix.

    density: share of the weights that may move (salun, random_mask); for salun_soft, 1 - density
    of them snap back at the first step. which, score, weighting: how saliency is ranked and
    measured; weighting "batch" counts a short last batch in full, "sample" gives the exact
    full-batch gradient. order: "sequential" (all of D_f, then all of D_r) or "mixed" (shuffled
    together, labels drawn once an epoch). true_label_included: whether a random label may be the
    true one. hold_norm_stats: batch-norm layers normalise by their running statistics and leave
    them alone; otherwise these buffers move even where all weights are frozen. soft_anchor:
    SalUn-soft measures changes from the "original" weights or from those at each "epoch"'s start.
    """

    epochs: int = 10
    lr: float = 0.013
    density: float = 0.5
    which: str = "largest"
    score: str = "abs_of_sum"
    weighting: str = "sample"
    order: str = "sequential"
    true_label_included: bool = False
    hold_norm_stats: bool = False
    soft_anchor: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.density <= 1.0:
            raise ValueError(
                f"density must lie in (0, 1], the share of weights that may move, found "
                f"{self.density}"
            )
        one_of(self, "which", ("largest", "smallest"))
        one_of(self, "score", SCORES)
        one_of(self, "weighting", ("batch", "sample"))
        one_of(self, "order", ("sequential", "mixed"))
        one_of(self, "soft_anchor", ("original", "epoch"))


# What the paper's formulae say and what the authors' code does.
PRESETS: Mapping[str, ClassifierSettings] = {
    "paper": ClassifierSettings(),
    "reference": ClassifierSettings(
        true_label_included=True, weighting="batch", soft_anchor="epoch"
    ),
}

# Where a method's defaults differ from the preset (paper, appendix C.2).
_METHOD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ft": {"lr": 0.01},
    "ga": {"epochs": 5, "lr": 1e-4},
    "retrain": {"epochs": 182, "lr": 0.1},
}

Settings = TypeVar("Settings", bound="DataclassInstance")


def resolve(method: str, preset: str, overrides: Mapping[str, Any]) -> ClassifierSettings:
    """The settings of a method under a preset with the caller's changes."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, found {preset!r}")
    return override(PRESETS[preset], {**_METHOD_DEFAULTS.get(method, {}), **overrides})


def override(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Changed settings; an unknown name is an error that lists the known ones."""
    known = [f.name for f in fields(settings)]
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise TypeError(f"unknown setting {name!r}; {meant}known: {', '.join(known)}")
    return replace(settings, **overrides)
