"""A search that ended at its edge is said to have."""

from __future__ import annotations

from salun_fast.report.search import edge_notes
from tests.report.conftest import source


def _trial(kind: str, lr: float, density: float = 0.5) -> dict[str, object]:
    overrides = {"lr": lr, "density": density}
    return {
        "kind": kind, "task": "random", "method": "salun", "seed": 100, "overrides": overrides,
        "average_gap": 1.0,
    }  # fmt: skip


def test_setting_at_the_edge_of_the_search_is_named():
    trials = [_trial("search", lr) for lr in (0.01, 0.03, 0.1)]
    notes = edge_notes(source([*trials, _trial("choice", 0.1)]), {"random": "forgetting 10 %"})
    assert notes == ["SalUn, forgetting 10 %: lr 0.1 is the largest tried"]


def test_setting_inside_the_search_needs_no_note():
    trials = [_trial("search", lr) for lr in (0.01, 0.03, 0.1)]
    assert edge_notes(source([*trials, _trial("choice", 0.03)]), {"random": "x"}) == []
