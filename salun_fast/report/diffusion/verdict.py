"""The sentences on top of a page of diffusion runs, written from its tables and nothing else.

SalUn and its control count as different only where their intervals mean ± std do not overlap,
which needs at least two seeds; a reader can check that in the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from salun_fast.diffusion_records import YARDSTICKS
from salun_fast.report.diffusion.summary import (
    GOAL_RATIO,
    GOAL_UA,
    DiffusionRow,
    Measured,
    cell,
)
from salun_fast.report.verdict import control_name
from salun_fast.report.words import METHOD_NAMES

Rows = Mapping[str, Sequence[DiffusionRow]]
Pair = tuple[DiffusionRow, DiffusionRow]

GOAL = f"a UA of at least {GOAL_UA:g} %"
GOAL_DISTANCE = f"a retained distance at most {100 * (GOAL_RATIO - 1):.0f} % above the original's"
# How often the intervals of two equal methods lie apart by chance, in percent, by the number of
# seeds: normal values, simulated.
CHANCE = {2: 22, 3: 8, 4: 4, 5: 2}
NAMED_TASKS = 2  # up to here tasks are named with their numbers, beyond they are counted


def verdict(rows: Rows) -> str:
    """Who forgot and kept the rest, then SalUn against its control. rows: per task."""
    if not any(row.ua for found in rows.values() for row in found):
        return "No judge was given, so forgetting is not measured here: look at the pictures."
    return " ".join(part for part in (_reached(rows), _against_control(rows)) if part)


def remarks(rows: Rows) -> list[str]:
    """What a reader should know beside the verdict."""
    lines = []
    if len(rows) <= NAMED_TASKS:
        lines += [_before_and_after(task, found) for task, found in rows.items()]
    lines += [line for found in rows.values() if (line := _unmasked(found))]
    pairs = controlled(rows).values()
    lines += [mean_difference(pairs), _chance(pairs)]
    return [line for line in lines if line]


def controlled(rows: Rows) -> dict[str, Pair]:
    """SalUn and the random mask of each task that has both, judged."""
    pairs = {}
    for task, found in rows.items():
        methods = {row.method: row for row in found if row.ua}
        if {"salun", "random_mask"} <= methods.keys():
            pairs[task] = (methods["salun"], methods["random_mask"])
    return pairs


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


# --- the goal -------------------------------------------------------------------------------------


def _reached(rows: Rows) -> str:
    """Which methods reach the goal, in how many tasks."""
    judged = [
        row for found in rows.values() for row in found if row.ua and row.method not in YARDSTICKS
    ]
    if not judged:
        return "Nothing was unlearned yet."
    measured = any(row.ratio for row in judged)
    goal = f"{GOAL} with {GOAL_DISTANCE}" if measured else GOAL
    reached = {
        method: [
            row.forgets and (row.keeps or not measured) for row in judged if row.method == method
        ]
        for method in dict.fromkeys(row.method for row in judged)
    }
    return _counted(goal, reached) if len(rows) > 1 else _named(goal, reached, next(iter(rows)))


def _named(goal: str, reached: Mapping[str, Sequence[bool]], task: str) -> str:
    yes = [METHOD_NAMES[m] for m, found in reached.items() if found[0]]
    no = [METHOD_NAMES[m] for m, found in reached.items() if not found[0]]
    start = f"Forgetting {task}:"
    if not yes:
        what = "no method reaches" if len(no) > 1 else f"{no[0]} does not reach"
        return f"{start} {what} {goal}."
    verb = "reach" if len(yes) > 1 else "reaches"
    rest = f"; {listed(no)} {'do' if len(no) > 1 else 'does'} not" if no else ""
    return f"{start} {listed(yes)} {verb} {goal}{rest}."


def _counted(goal: str, reached: Mapping[str, Sequence[bool]]) -> str:
    parts = [
        f"{METHOD_NAMES[m]} in {sum(found)} of {len(found)} task{'s' if len(found) > 1 else ''}"
        for m, found in reached.items()
    ]
    return f"{goal[0].upper()}{goal[1:]} is reached by {listed(parts)}."


# --- the control ----------------------------------------------------------------------------------


def _against_control(rows: Rows) -> str:
    """Tasks of the same outcome share one clause; the most frequent comes first."""
    pairs = controlled(rows)
    if not pairs:
        return "There is no random-mask control to compare with."
    rivals = {control_name(salun.density, control.density) for salun, control in pairs.values()}
    rival = rivals.pop() if len(rivals) == 1 else "a random mask"
    clauses: dict[str, list[str]] = {}
    for task, (salun, control) in pairs.items():
        clauses.setdefault(outcome(salun, control), []).append(task)
    ordered = sorted(clauses.items(), key=lambda clause: -len(clause[1]))
    words = "; ".join(f"{found}{_where(tasks, pairs)}" for found, tasks in ordered)
    return f"Against {rival}, {words}."


def outcome(salun: DiffusionRow, control: DiffusionRow) -> str:
    """What the two intervals mean ± std allow to say."""
    if min(len(salun.seeds), len(control.seeds)) < 2:
        return "one seed settles nothing"
    forgot = {1: "forgot more", -1: "forgot less", 0: ""}[_more_forgotten(salun, control)]
    kept = {1: "kept the rest better", -1: "kept the rest worse", 0: ""}
    found = [words for words in (forgot, kept[_better_kept(salun, control)]) if words]
    return f"SalUn {' and '.join(found) or 'does not differ beyond the spread over seeds'}"


def _more_forgotten(row: DiffusionRow, other: DiffusionRow) -> int:
    return _sign(row.ua, other.ua)


def _better_kept(row: DiffusionRow, other: DiffusionRow) -> int:
    """By the distance; by RA where none was measured."""
    if row.distance and other.distance:
        return _sign(other.distance, row.distance)
    return _sign(row.ra, other.ra)


def _sign(first: Measured | None, second: Measured | None) -> int:
    if first is None or second is None:
        return 0
    return int(first.exceeds(second)) - int(second.exceeds(first))


def _where(tasks: Sequence[str], pairs: Mapping[str, Pair]) -> str:
    """The tasks with their numbers, or how many they are."""
    if len(pairs) == 1:
        return f" ({_numbers(*pairs[tasks[0]])})"
    if len(pairs) <= NAMED_TASKS:
        return " on " + " and ".join(f"{task} ({_numbers(*pairs[task])})" for task in tasks)
    counted = f" in {len(tasks)} of {len(pairs)} tasks"
    return f"{counted} ({', '.join(tasks)})" if len(tasks) <= NAMED_TASKS else counted


def _numbers(salun: DiffusionRow, control: DiffusionRow) -> str:
    words = f"UA {cell(salun.ua)} % against {cell(control.ua)} %"
    if salun.distance and control.distance:
        return f"{words}, distance {salun.distance} against {control.distance}"
    return f"{words}, RA {cell(salun.ra)} % against {cell(control.ra)} %"


# --- beside it ------------------------------------------------------------------------------------


def _before_and_after(task: str, found: Sequence[DiffusionRow]) -> str:
    """UA and ratio of the original, of SalUn (or the first method there is) and of Retrain."""
    methods = {row.method: row for row in found if row.ua}
    after = [m for m in methods if m not in YARDSTICKS]
    shown = ["original", *(["salun"] if "salun" in after else after[:1]), "retrain"]
    parts = [_state(methods[m]) for m in shown if m in methods]
    return f"Forgetting {task}: UA {', '.join(parts)}." if len(parts) > 1 else ""


def _state(row: DiffusionRow) -> str:
    phase = {"original": "before", "retrain": "retrained"}
    words = f"{row.ua} % {phase.get(row.method, f'after {METHOD_NAMES[row.method]}')}"
    if row.ratio is None or row.method == "original":
        return words
    return f"{words} (distance {row.ratio} times the original's)"


def _unmasked(found: Sequence[DiffusionRow]) -> str:
    """Where SalUn beats its control: whether any mask was needed for that."""
    methods = {row.method: row for row in found if row.ua}
    if not {"salun", "random_mask", "rl"} <= methods.keys():
        return ""
    salun, control, rl = (methods[m] for m in ("salun", "random_mask", "rl"))
    won = _more_forgotten(salun, control) > 0 or _better_kept(salun, control) > 0
    if not won or _more_forgotten(salun, rl) > 0 or _better_kept(salun, rl) > 0:
        return ""
    return (
        f"Forgetting {rl.task}: the same losses without any mask are not worse than SalUn "
        f"({_numbers(rl, salun)})."
    )


def mean_difference(pairs: Iterable[Pair]) -> str:
    """SalUn minus the random mask over several tasks; empty for fewer than two."""
    found = list(pairs)
    ua = Measured.of([s.ua.mean - c.ua.mean for s, c in found if s.ua and c.ua])
    if ua is None or ua.count < 2:
        return ""
    words = f"SalUn minus random mask, mean ± std over {ua.count} tasks: UA {_signed(ua)} points"
    ratio = Measured.of([s.ratio.mean - c.ratio.mean for s, c in found if s.ratio and c.ratio])
    return f"{words}, distance {_signed(ratio)} of the original's." if ratio else f"{words}."


def _chance(pairs: Collection[Pair]) -> str:
    """How much a difference beyond so few seeds' spread says."""
    if not any(_more_forgotten(*pair) or _better_kept(*pair) for pair in pairs):
        return ""
    seeds = min(len(row.seeds) for pair in pairs for row in pair if len(row.seeds) > 1)
    if seeds not in CHANCE:
        return ""
    return (
        f"Even the intervals of two equal methods lie apart by chance in about {CHANCE[seeds]} % "
        f"of comparisons over {seeds} seeds; every task makes two of them."
    )


def _signed(value: Measured) -> str:
    return f"{value.mean:+.2f} ± {value.std:.2f}".replace("-", "−")
