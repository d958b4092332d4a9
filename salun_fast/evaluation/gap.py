"""Closeness to Retrain, the yardstick of approximate unlearning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from salun_fast.evaluation.metrics import ClassifierMetrics

METRICS = ("ua", "ra", "ta", "mia")

Measured: TypeAlias = ClassifierMetrics | Mapping[str, float]


def gaps(method: Measured, retrain: Measured) -> dict[str, float]:
    """|method - Retrain| of UA, RA, TA and MIA, in percentage points."""
    ours, theirs = _values(method), _values(retrain)
    return {name: abs(ours[name] - theirs[name]) for name in METRICS}


def average_gap(method: Measured, retrain: Measured) -> float:
    """Avg. Gap of SalUn's tables: the mean of the four gaps, in percentage points.

    Over several seeds give the means of the metrics: the paper takes the gaps of the means.
    """
    return sum(gaps(method, retrain).values()) / len(METRICS)


def _values(measured: Measured) -> dict[str, float]:
    if isinstance(measured, ClassifierMetrics):
        return {name: float(getattr(measured, name)) for name in METRICS}
    missing = [name for name in METRICS if name not in measured]
    if missing:
        raise ValueError(f"metrics must hold {', '.join(METRICS)}; missing: {', '.join(missing)}")
    return {name: float(measured[name]) for name in METRICS}
