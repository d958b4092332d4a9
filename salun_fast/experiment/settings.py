"""What a comparison consists of, and the two that `salun-fast demo` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from salun_fast.methods.settings import RANDOM_LABEL

COMPARED = ("original", "retrain", "ft", "ga", "rl", "salun", "random_mask", "salun_soft")
TASKS = ("random", "class")


@dataclass(frozen=True)
class ExperimentSettings:
    """One comparison.

    tasks: "random" forgets ``fraction`` of the training images, "class" all of ``forget_class``.
    train: settings of the original and retrained models; unlearn: of all unlearning methods.

    Search: on ``tuning_seed``, which is none of ``seeds``, each method tries every learning rate
    that ``lrs`` gives it for the task; SalUn then tries the other ``densities`` at its best one;
    the random mask takes SalUn's density and tries its own learning rates at it. The smallest Avg.
    Gap to that seed's retrained model wins, measured on at most ``search_images`` images of each
    set.

    max_members: cap on the images of each kind that the membership attack is fitted on.
    device: where all of it is computed, shared by all workers.
    workers: processes at work side by side, ``threads`` threads each (None: torch's default);
    run times are measured under that load.
    """

    data: str = "digits"
    root: str | None = None
    model: str = "resnet18"
    width: float = 8
    tasks: tuple[str, ...] = TASKS
    fraction: float = 0.1
    forget_class: int = 3
    methods: tuple[str, ...] = COMPARED
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    preset: str = "paper"
    train: Mapping[str, Any] = field(default_factory=dict)
    unlearn: Mapping[str, Any] = field(default_factory=dict)
    lrs: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    densities: tuple[float, ...] = (0.5,)
    search_images: int = 10_000
    max_members: int = 2_000
    device: str = "cpu"
    workers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in COMPARED]
        if unknown or "retrain" not in self.methods:
            raise ValueError(
                f"methods must be of {', '.join(COMPARED)} and hold 'retrain', the yardstick; "
                f"found {', '.join(self.methods)}"
            )
        wrong = [t for t in self.tasks if t not in TASKS]
        if wrong or not self.tasks:
            raise ValueError(f"tasks must be of {', '.join(TASKS)}, found {self.tasks}")
        if not self.seeds or self.tuning_seed in self.seeds:
            raise ValueError(
                "seeds must hold at least one seed and not the tuning seed "
                f"{self.tuning_seed}, found {self.seeds}"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        missing = [
            f"{task}.{method}"
            for task in self.tasks
            for method in self.tuned
            if not self.lrs.get(task, {}).get(method)
        ]
        if missing:
            raise ValueError(f"lrs must give learning rates to try for {', '.join(missing)}")

    @property
    def tuned(self) -> tuple[str, ...]:
        """The methods whose learning rate is searched."""
        return tuple(m for m in self.methods if m not in ("original", "retrain"))


def _rates(
    ft: tuple[float, ...], ga: tuple[float, ...], random_label: tuple[float, ...]
) -> dict[str, tuple[float, ...]]:
    """The same candidates for every method that learns random labels."""
    return {"ft": ft, "ga": ga, **dict.fromkeys(RANDOM_LABEL, random_label)}


# Seeds 0, 1 and 2 of the digits and seed 0 of Fashion-MNIST were looked at while the grids were
# drawn up, so they are not reported.
EXPERIMENTS: Mapping[str, ExperimentSettings] = {
    "digits": ExperimentSettings(
        data="digits",
        seeds=(3, 4, 5),
        train={
            "epochs": 20,
            "batch_size": 64,
            "schedule": "cosine",
            "warmup_epochs": 1,
        },
        unlearn={"epochs": 5, "batch_size": 64},
        lrs={
            "random": _rates((0.03, 0.1, 0.3), (1e-3, 3e-3, 1e-2), (0.01, 0.03, 0.1)),
            "class": _rates((0.03, 0.1, 0.3), (1e-3, 3e-3, 1e-2), (0.01, 0.03, 0.1)),
        },
        densities=(0.3, 0.5, 0.7),
        workers=2,
        threads=1,
    ),
    "fashion-mnist": ExperimentSettings(
        data="fashion-mnist",
        seeds=(1, 2, 3),
        train={"epochs": 4, "schedule": "cosine", "warmup_epochs": 0.5, "precision": "bf16"},
        unlearn={"epochs": 1, "precision": "bf16"},
        lrs={
            "random": _rates((0.01, 0.03, 0.1), (1e-3, 2e-3, 4e-3), (5e-4, 0.0015, 0.004)),
            "class": _rates((0.01, 0.03, 0.1), (3e-5, 1e-4, 3e-4), (0.004, 0.012, 0.036)),
        },
        densities=(0.3, 0.5),
        workers=2,
        threads=1,
    ),
}
