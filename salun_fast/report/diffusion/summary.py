"""Mean and spread over seeds of what was measured on diffusion runs: the rows of the tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salun_fast.experiment.summary import deviation
from salun_fast.report.diffusion.source import DiffusionSource
from salun_fast.report.words import NOTHING, spread

# What "forgotten, and the rest kept" is taken to mean.
GOAL_UA = 95.0
GOAL_RATIO = 1.1


@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation (n - 1, 0.0 for one) over ``count`` seeds or tasks."""

    mean: float
    std: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Measured | None:
        """None of nothing."""
        if not values:
            return None
        return Measured(statistics.fmean(values), deviation(list(values)), len(values))

    def over(self, unit: float) -> Measured:
        return Measured(self.mean / unit, self.std / unit, self.count)

    def exceeds(self, other: Measured) -> bool:
        """By more than both spreads, over at least two seeds each."""
        apart = self.mean - other.mean > self.std + other.std
        return apart and min(self.count, other.count) > 1

    def __str__(self) -> str:
        return self.text()

    def text(self, decimals: int = 2) -> str:
        return spread(self.mean, self.std, self.count, decimals)


@dataclass(frozen=True)
class DiffusionRow:
    """One method on one task over its seeds; None where nothing was measured.

    ua, ra: percent, by the judge. distance: Fréchet, on what is retained; ratio: to the original
    model's. per_row: label to percent called as asked. rte, rte_std: seconds with the mask's cost.
    density: share of the weights that may move.
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    ua: Measured | None
    ra: Measured | None
    distance: Measured | None
    ratio: Measured | None
    clip_score: Measured | None
    per_row: dict[str, float]
    rte: float | None
    rte_std: float | None
    overrides: dict[str, float | str]
    density: float | None

    @property
    def forgets(self) -> bool:
        return self.ua is not None and self.ua.mean >= GOAL_UA

    @property
    def keeps(self) -> bool:
        return self.ratio is not None and self.ratio.mean <= GOAL_RATIO


def rows(source: DiffusionSource, task: str) -> list[DiffusionRow]:
    """In the order of the tables."""
    original = _distance([r["metrics"] for r in source.of(task, "original")])
    return [_row(task, m, source.of(task, m), original) for m in source.methods(task)]


def cell(value: Measured | None, decimals: int = 2) -> str:
    return NOTHING if value is None else value.text(decimals)


def _row(
    task: str, method: str, runs: list[dict[str, Any]], original: Measured | None
) -> DiffusionRow:
    metrics = [r["metrics"] for r in runs]
    distance = _distance(metrics)
    time = Measured.of([float(r["seconds"]["total"]) for r in runs if r.get("seconds")])
    return DiffusionRow(
        task=task,
        method=method,
        seeds=tuple(int(r["seed"]) for r in runs),
        ua=_mean(metrics, "ua"),
        ra=_mean(metrics, "ra"),
        distance=distance,
        ratio=_ratio(distance, original),
        clip_score=_mean(metrics, "clip_score"),
        per_row=_per_row(metrics),
        rte=time.mean if time else None,
        rte_std=time.std if time else None,
        overrides=dict(runs[0].get("overrides") or {}),
        density=_density(runs[0]),
    )


def _mean(metrics: Sequence[dict[str, Any] | None], name: str) -> Measured | None:
    values = [m[name] for m in metrics if m is not None and m.get(name) is not None]
    return Measured.of([float(value) for value in values])


def _distance(metrics: Sequence[dict[str, Any] | None]) -> Measured | None:
    found = [m["frechet"] for m in metrics if m is not None and m.get("frechet")]
    return Measured.of([float(distance["value"]) for distance in found])


def _ratio(distance: Measured | None, original: Measured | None) -> Measured | None:
    if distance is None or original is None or original.mean == 0:
        return None
    return distance.over(original.mean)


def _per_row(metrics: Sequence[dict[str, Any] | None]) -> dict[str, float]:
    shares = [m["per_row"] for m in metrics if m is not None and m.get("per_row")]
    labels = dict.fromkeys(label for found in shares for label in found)
    return {
        label: statistics.fmean(found[label] for found in shares if label in found)
        for label in labels
    }


def _density(run: dict[str, Any]) -> float | None:
    chosen = (run.get("overrides") or {}).get("density")
    if chosen is not None:
        return float(chosen)
    mask = run.get("mask")
    return float(f"{mask['density']:.4g}") if mask else None
