"""The sentence on top of a report, written from the numbers of its table and nothing else.

SalUn and its control count as different only where their intervals Avg. Gap mean ± std do not
overlap, which needs at least two seeds; a reader can check that in the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from salun_fast.experiment import Row
from salun_fast.report.words import METHOD_NAMES, gap_cell

Rows = Mapping[str, Sequence[Row]]


def verdict(rows: Rows, phrases: Mapping[str, str]) -> str:
    """One sentence. rows: per task; phrases: how each task is called inside a sentence."""
    compared = {task: _by_method(r) for task, r in rows.items()}
    controlled = [t for t, m in compared.items() if {"salun", "random_mask"} <= _with_gap(m)]
    if controlled:
        return _against_control(compared, controlled, phrases)
    judged = [t for t, m in compared.items() if _with_gap(m)]
    if judged:
        parts = [f"{_closest(compared[t])} when {phrases[t]}" for t in judged]
        return f"Closest to Retrain: {'; '.join(parts)}; without a random-mask control."
    parts = [_before_and_after(m, phrases[t]) for t, m in compared.items()]
    return "; ".join(parts) + "; without Retrain there is nothing to judge this by."


def remarks(rows: Rows, phrases: Mapping[str, str]) -> list[str]:
    """One line per task: who is closest, and whether anything beats doing nothing."""
    lines = []
    for task, found in rows.items():
        methods = _by_method(found)
        if not _with_gap(methods):
            continue
        phrase = phrases[task][0].upper() + phrases[task][1:]
        best = _ranked(methods)[0]
        line = f"{phrase}: {METHOD_NAMES[best.method]} has the smallest Avg. Gap, {gap_cell(best)}"
        line += _ties(methods)
        lines.append(line + _against_original(methods) + ".")
    return lines


def _ties(methods: Mapping[str, Row]) -> str:
    """The other methods whose intervals overlap with the best one's."""
    best, *others = _ranked(methods)
    if len(best.seeds) < 2:
        return ""
    tied = [METHOD_NAMES[row.method] for row in others if not _closer(best, row)]
    return f", which the spread over seeds does not separate from {', '.join(tied)}" if tied else ""


def _against_control(
    compared: Mapping[str, dict[str, Row]], tasks: Sequence[str], phrases: Mapping[str, str]
) -> str:
    """Tasks of the same outcome share one clause."""
    clauses: dict[str, list[str]] = {}
    for task in tasks:
        salun, control = compared[task]["salun"], compared[task]["random_mask"]
        clauses.setdefault(outcome(salun, control), []).append(
            f"when {phrases[task]} (Avg. Gap {gap_cell(salun)} against {gap_cell(control)}"
            f"{_unmasked(salun, control, compared[task].get('rl'))})"
        )
    sentence = "; ".join(f"{words} {' and '.join(cases)}" for words, cases in clauses.items())
    return sentence[0].upper() + sentence[1:] + "."


def _unmasked(salun: Row, control: Row, rl: Row | None) -> str:
    """Where SalUn beats its control: whether any mask was needed for that."""
    if rl is None or not rl.gaps or not _closer(salun, control) or _closer(salun, rl):
        return ""
    return f", but random labels without any mask get {gap_cell(rl)}"


def _closer(row: Row, other: Row) -> bool:
    """Whether ``row`` is closer to Retrain by more than both spreads, over at least two seeds."""
    seeds = min(len(row.seeds), len(other.seeds))
    return seeds > 1 and other.average_gap - row.average_gap > _spreads(row, other)


def _spreads(row: Row, other: Row) -> float:
    return row.average_gap_std + other.average_gap_std


def outcome(salun: Row, control: Row) -> str:
    """What the two intervals mean ± std allow to say."""
    rival = control_name(*(row.overrides.get("density") for row in (salun, control)))
    if min(len(salun.seeds), len(control.seeds)) < 2:
        return f"one seed cannot tell SalUn from {rival}"
    if not _closer(salun, control) and not _closer(control, salun):
        return f"SalUn and {rival} do not differ beyond the spread over seeds"
    if _closer(salun, control):
        return f"SalUn came closer to Retrain than {rival}"
    return f"SalUn stayed farther from Retrain than {rival}"


def control_name(salun: float | None, control: float | None) -> str:
    """The random mask as a sentence calls it, by the densities of both."""
    if salun == control:
        return "a random mask of the same density"
    return f"a random mask of another density ({control}, SalUn's is {salun})"


def _closest(methods: Mapping[str, Row]) -> str:
    best = _ranked(methods)[0]
    return f"{METHOD_NAMES[best.method]} (Avg. Gap {gap_cell(best)})"


def _against_original(methods: Mapping[str, Row]) -> str:
    original = methods.get("original")
    if original is None or not original.gaps:
        return ""
    best = _ranked(methods)[0].average_gap
    words = f"the unchanged model has {gap_cell(original)}"
    if best >= original.average_gap:
        return f", and {words}: no method came closer than doing nothing"
    return f"; {words}"


def _before_and_after(methods: Mapping[str, Row], phrase: str) -> str:
    parts = [
        f"{METHOD_NAMES[name]} has UA {row.mean['ua']:.2f} %, RA {row.mean['ra']:.2f} %, "
        f"TA {row.mean['ta']:.2f} %"
        for name, row in methods.items()
    ]
    return f"{phrase[0].upper()}{phrase[1:]}: {', '.join(parts)}"


def _ranked(methods: Mapping[str, Row]) -> list[Row]:
    """Unlearning methods by Avg. Gap, the smallest first."""
    found = [methods[m] for m in _with_gap(methods)]
    return sorted(found, key=lambda row: (row.average_gap, row.method))


def _with_gap(methods: Mapping[str, Row]) -> set[str]:
    """The unlearning methods that can be compared with Retrain."""
    return {
        name
        for name, row in methods.items()
        if name not in ("original", "retrain") and not math.isnan(row.average_gap)
    }


def _by_method(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.method: row for row in rows}
