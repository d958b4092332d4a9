"""Records as a comparison writes them, with numbers chosen by the test."""

from __future__ import annotations

from typing import Any

import pytest

from salun_fast.report import Source

Numbers = tuple[float, float, float, float]

MACHINE = {"torch": "2.14.1", "processor": "Test CPU", "cores": 2, "threads": 1}
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "resnet18",
    "width": 8,
    "fraction": 0.1,
    "forget_class": 3,
    "tuning_seed": 100,
}


def run(method: str, seed: int, numbers: Numbers, task: str = "random") -> dict[str, Any]:
    """One run record; methods with a mask bring mask and certificate."""
    record: dict[str, Any] = {
        "kind": "run",
        "task": task,
        "seed": seed,
        "method": method,
        "overrides": {},
        "metrics": dict(zip(("ua", "ra", "ta", "mia"), numbers, strict=True)),
        "examples": {"indices": [4, 7], "labels": [1, 2], "predicted": [1, 5]},
    }
    if method != "original":
        record["seconds"] = {"train": 11.0, "total": 12.5}
    if method in ("salun", "random_mask"):
        record["overrides"] = {"lr": 0.03, "density": 0.5}
        layers = {"conv.weight": 0.25, "fc.<b>": 1.0}
        record["mask"] = {
            "count": 5, "numel": 10, "density": 0.5, "fingerprint": "f" * 64, "layers": layers,
        }  # fmt: skip
        record["certificate"] = {
            "frozen": 5, "changed": 0, "digest_before": "a" * 64, "digest_after": "a" * 64,
            "holds": True,
        }  # fmt: skip
    return record


def source(records: list[dict[str, Any]], **settings: Any) -> Source:
    return Source("run", records, SETTINGS | settings, MACHINE, command="salun-fast demo")


def seeds(method: str, *numbers: Numbers, task: str = "random") -> list[dict[str, Any]]:
    return [run(method, seed, found, task) for seed, found in enumerate(numbers)]


@pytest.fixture
def compared() -> Source:
    """Two seeds; the random mask is clearly closer to Retrain than SalUn."""
    return source(
        [
            *seeds("original", (0.0, 100.0, 95.0, 2.0), (0.0, 100.0, 95.0, 2.0)),
            *seeds("retrain", (5.0, 100.0, 94.0, 12.0), (6.0, 100.0, 94.0, 12.0)),
            *seeds("salun", (9.0, 99.0, 93.0, 20.0), (10.0, 99.0, 93.0, 20.0)),
            *seeds("random_mask", (5.0, 100.0, 94.0, 11.0), (6.0, 100.0, 94.0, 11.0)),
        ]
    )
