"""Mean, spread and gaps over seeds: the rows of the comparison table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from salun_fast.evaluation.gap import METRICS, average_gap, gaps
from salun_fast.experiment.settings import COMPARED


@dataclass(frozen=True)
class Row:
    """One method on one task over its seeds; percent and percentage points.

    mean, std: of ua, ra, ta, mia (std with n - 1, 0.0 for one seed). gaps, average_gap: of the
    means to Retrain's means over the same seeds, as in the paper; average_gap_std: spread of the
    seeds' own Avg. Gaps. rte, rte_std: seconds of run time with the mask's cost, None for the
    original model. overrides: what the search chose.
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    mean: dict[str, float]
    std: dict[str, float]
    gaps: dict[str, float]
    average_gap: float
    average_gap_std: float
    rte: float | None
    rte_std: float | None
    overrides: dict[str, float]


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows in the order of the paper's table, task by task; seeds without Retrain are left out."""
    runs: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    tuning = None
    for record in records:
        if record["kind"] == "settings":
            tuning = record["settings"]["tuning_seed"]
        elif record["kind"] == "run" and record["seed"] != tuning:
            runs.setdefault((record["task"], record["method"]), {})[record["seed"]] = record
    tasks = list(dict.fromkeys(task for task, _ in runs))
    return [
        _row(task, method, runs[task, method], runs[task, "retrain"])
        for task in tasks
        for method in COMPARED
        if (task, "retrain") in runs and runs.get((task, method), {}).keys() & runs[task, "retrain"]
    ]


def _row(
    task: str,
    method: str,
    runs: Mapping[int, Mapping[str, Any]],
    retrained: Mapping[int, Mapping[str, Any]],
) -> Row:
    seeds = sorted(runs.keys() & retrained.keys())
    ours = [runs[seed]["metrics"] for seed in seeds]
    theirs = [retrained[seed]["metrics"] for seed in seeds]
    mean, yardstick = _means(ours), _means(theirs)
    own = [average_gap(a, b) for a, b in zip(ours, theirs, strict=True)]
    times = [runs[seed]["seconds"]["total"] for seed in seeds if "seconds" in runs[seed]]
    return Row(
        task=task,
        method=method,
        seeds=tuple(seeds),
        mean=mean,
        std={name: deviation([m[name] for m in ours]) for name in METRICS},
        gaps=gaps(mean, yardstick),
        average_gap=average_gap(mean, yardstick),
        average_gap_std=deviation(own),
        rte=statistics.fmean(times) if times else None,
        rte_std=deviation(times) if times else None,
        overrides=dict(runs[seeds[0]].get("overrides", {})),
    )


def _means(metrics: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(m[name] for m in metrics) for name in METRICS}


def deviation(values: list[float]) -> float:
    """Standard deviation with n - 1; 0.0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
