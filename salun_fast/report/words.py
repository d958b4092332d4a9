"""How methods, tasks and numbers are written in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from salun_fast.experiment import Row

METHOD_NAMES = {
    "original": "Original",
    "retrain": "Retrain",
    "ft": "FT",
    "ga": "GA",
    "rl": "RL",
    "salun": "SalUn",
    "random_mask": "Random mask",
    "salun_soft": "SalUn-soft",
}
METHOD_NOTES = {
    "original": "before unlearning",
    "retrain": "the yardstick",
    "ft": "fine-tuning on the rest",
    "ga": "gradient ascent",
    "rl": "random labels, no mask",
    "salun": "random labels, salient weights",
    "random_mask": "the control: as many weights, drawn at random",
    "salun_soft": "random labels, proximal step",
}
METRIC_NAMES = {"ua": "UA", "ra": "RA", "ta": "TA", "mia": "MIA"}
NOTHING = "–"
LONG_RUN = 600.0  # seconds from which run times are written in minutes


class Timed(Protocol):
    """A row of a table: one method over its seeds. rte, rte_std: seconds of run time."""

    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def rte(self) -> float | None: ...
    @property
    def rte_std(self) -> float | None: ...


def task_title(task: str, settings: dict[str, Any], classes: tuple[str, ...] = ()) -> str:
    """The heading of a task, e.g. "Forgetting 10 % of the images at random"."""
    if task == "random":
        fraction = settings.get("fraction")
        return f"Forgetting {100 * (0.1 if fraction is None else fraction):g} % at random"
    index = int(settings["forget_class"])
    name = classes[index] if index < len(classes) else str(index)
    label = f"class {index}" if name == str(index) else f"class {index} ({name})"
    return f"Forgetting {label}"


def task_phrase(task: str, settings: dict[str, Any], classes: tuple[str, ...] = ()) -> str:
    """The same inside a sentence."""
    return task_title(task, settings, classes).replace("Forgetting ", "forgetting ", 1)


def spread(value: float, std: float, seeds: int, decimals: int = 2) -> str:
    """Mean ± std; the mean alone for one seed."""
    mean = f"{value:.{decimals}f}"
    return f"{mean} ± {std:.{decimals}f}" if seeds > 1 else mean


def metric_cell(row: Row, metric: str) -> tuple[str, str]:
    """The value with its spread, and the gap in parentheses (empty where there is none)."""
    value = spread(row.mean[metric], row.std[metric], len(row.seeds))
    gap = row.gaps.get(metric)
    shown = gap is not None and row.method != "retrain"
    return value, f"({gap:.2f})" if shown else ""


def gap_cell(row: Row) -> str:
    if row.method == "retrain" or not row.gaps:
        return NOTHING
    return spread(row.average_gap, row.average_gap_std, len(row.seeds))


def time_unit(rows: Sequence[Timed]) -> tuple[str, float]:
    """("s", 1) or ("min", 60), whichever suits the longest run of a table."""
    longest = max((row.rte or 0.0 for row in rows), default=0.0)
    return ("min", 60.0) if longest > LONG_RUN else ("s", 1.0)


def time_cell(row: Timed, divisor: float) -> str:
    if row.rte is None:
        return NOTHING
    return spread(row.rte / divisor, (row.rte_std or 0.0) / divisor, len(row.seeds))


def settings_words(overrides: Mapping[str, float | str]) -> str:
    """``lr 0.03, density 0.5``."""
    order = sorted(overrides, key=lambda name: (name != "lr", name))
    return ", ".join(f"{name} {_setting(overrides[name])}" for name in order)


def _setting(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
