"""Settings of training and unlearning diffusion models, and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from salun_fast.methods.settings import SCORES, Settings, at_least, one_of, override

DIFFUSION_METHODS = ("salun", "random_mask", "rl", "ga")
REDUCTIONS = ("mean", "pixel_sum")


def _check_numbers(settings: Any) -> None:
    """By the types that the fields are declared with: YAML reads 1e-3 as a string."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
    for found in fields(settings):
        declared = str(found.type).removesuffix(" | None")
        value = getattr(settings, found.name)
        optional = str(found.type).endswith("| None") and value is None
        wrong = isinstance(value, bool) or not isinstance(value, kinds.get(declared, object))
        if declared in kinds and wrong and not optional:
            what = "a whole number" if declared == "int" else "a number, such as 0.001"
            raise TypeError(f"{found.name} must be {what}, found {value!r}")


@dataclass(frozen=True)
class StepSettings:
    """Adam (no decay) over steps; defaults are those of SalUn's class-conditional source model.

    gradient_accumulation: batches whose gradients are averaged into one step. max_grad_norm: the
    full gradient is scaled to this norm at most, before the mask; None leaves it. schedule:
    "constant" or "cosine" (to 0 over all steps), after ``warmup_steps`` of linear rise.
    condition_dropout: share of samples that are shown without their condition. antithetic:
    timesteps in pairs t, T - 1 - t. ema_decay: keep an exponential moving average of the weights
    as well. precision: "fp32", or "bf16" for autocast of training; saliency stays fp32.
    checkpoint_every, report_every: in steps.
    """

    steps: int = 800_000
    lr: float = 2e-4
    batch_size: int = 128
    gradient_accumulation: int = 1
    max_grad_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    condition_dropout: float = 0.1
    antithetic: bool = True
    ema_decay: float | None = 0.9999
    precision: str = "fp32"
    checkpoint_every: int = 1000
    report_every: int = 10

    def __post_init__(self) -> None:
        _check_numbers(self)
        at_least(self, 1, "steps", "batch_size", "gradient_accumulation", "checkpoint_every")
        at_least(self, 1, "report_every")
        at_least(self, 0, "warmup_steps", "condition_dropout")
        one_of(self, "schedule", ("constant", "cosine"))
        one_of(self, "precision", ("fp32", "bf16"))
        if not self.lr > 0:
            raise ValueError(f"lr must be greater than 0, found {self.lr}")
        if not self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must be below 1, found {self.condition_dropout}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm must be greater than 0, or None, found {self.max_grad_norm}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1), or be None, found {self.ema_decay}")


@dataclass(frozen=True)
class UnlearnSettings(StepSettings):
    """What both kinds of diffusion unlearning share (SalUn, section 4 and appendix B).

    alpha: weight of the retain loss. density, which, score: of the mask, as for classifiers.
    saliency_guidance: w of the guided prediction whose loss is differentiated; 0 is the plain
    conditional loss of the paper's formula. saliency_clip: scale each batch's gradient to this
    norm at most before it is added.
    """

    steps: int = 1000
    lr: float = 1e-4
    alpha: float = 1e-3
    ema_decay: float | None = None
    checkpoint_every: int = 100
    density: float = 0.5
    which: str = "largest"
    score: str = "abs_of_sum"
    saliency_guidance: float = 0.0
    saliency_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "saliency_guidance")
        one_of(self, "which", ("largest", "smallest"))
        one_of(self, "score", SCORES)
        if not 0.0 < self.density <= 1.0:
            raise ValueError(
                f"density must lie in (0, 1], the share of weights that may move, found "
                f"{self.density}"
            )
        if not self.alpha > 0:
            raise ValueError(
                f"alpha must be greater than 0, found {self.alpha}: without the retain loss every "
                "class is destroyed, not only the forgotten one"
            )


@dataclass(frozen=True)
class DDPMSettings(UnlearnSettings):
    """Forgetting a class. replacement: which class the forgotten one is taught to look like where
    no ``replacement_class`` is given: the "next" one, (c + 1) mod C, or for each sample any
    "other". forget_reduction, retain_reduction: "mean" over all elements or "pixel_sum" over each
    image's; the reference mixes them, so alpha = 1e-3 weighs c·h·w / 1000 per element.
    """

    replacement: str = "other"
    forget_reduction: str = "mean"
    retain_reduction: str = "pixel_sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "replacement", ("next", "other"))
        one_of(self, "forget_reduction", REDUCTIONS)
        one_of(self, "retain_reduction", REDUCTIONS)


@dataclass(frozen=True)
class ConceptSettings(UnlearnSettings):
    """Forgetting a prompt (SalUn, appendix B.3). The paper trains 5 epochs of its forget images
    for a class (alpha 0.5) and 100 steps for nudity (alpha 0.1); the default of 1,000 steps is
    ours.

    trainable: "full", "xattn" (cross-attention), "selfattn", "noxattn" (all but cross-attention,
    time embedding and output layer) or a regular expression searched in parameter names.
    count_over: whether density counts the "trainable" weights or those of the whole "model", of
    which only the trainable ones can then move. redraw_posterior: encode the forget images anew
    for the replacement prompt's prediction, instead of the same x_t in both terms.
    """

    lr: float = 1e-5
    batch_size: int = 8
    alpha: float = 0.5
    max_grad_norm: float | None = None
    condition_dropout: float = 0.0
    antithetic: bool = False
    trainable: str = "full"
    count_over: str = "trainable"
    redraw_posterior: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "count_over", ("trainable", "model"))


# What the paper's formulae say and what the authors' code does.
DDPM_PRESETS: Mapping[str, DDPMSettings] = {
    "paper": DDPMSettings(),
    "reference": DDPMSettings(saliency_guidance=2.0, saliency_clip=1.0, replacement="next"),
}
CONCEPT_PRESETS: Mapping[str, ConceptSettings] = {
    "paper": ConceptSettings(),
    "reference": ConceptSettings(saliency_guidance=7.5, count_over="model", redraw_posterior=True),
}


def resolve_ddpm(method: str, preset: str, overrides: Mapping[str, Any]) -> DDPMSettings:
    """The settings of a method under a preset with the caller's changes."""
    check_method(method)
    return override(_of_preset(DDPM_PRESETS, preset), overrides)


def resolve_concept(method: str, preset: str, overrides: Mapping[str, Any]) -> ConceptSettings:
    """The settings of a method under a preset with the caller's changes."""
    check_method(method)
    return override(_of_preset(CONCEPT_PRESETS, preset), overrides)


def check_method(method: str) -> None:
    if method not in DIFFUSION_METHODS:
        raise ValueError(f"method must be one of {', '.join(DIFFUSION_METHODS)}, found {method!r}")


def _of_preset(presets: Mapping[str, Settings], preset: str) -> Settings:
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, found {preset!r}")
    return presets[preset]
