"""The result tables as Markdown, with what is needed to repeat them."""

from __future__ import annotations

from salun_fast.evaluation.gap import METRICS
from salun_fast.experiment import Row
from salun_fast.report.search import edge_notes
from salun_fast.report.source import Source
from salun_fast.report.verdict import remarks, verdict
from salun_fast.report.words import (
    METHOD_NAMES,
    METRIC_NAMES,
    gap_cell,
    metric_cell,
    settings_words,
    task_phrase,
    task_title,
    time_cell,
    time_unit,
)


def markdown(source: Source) -> str:
    """Verdict, one table per task, settings chosen, command, seeds and machine."""
    rows = {task: source.rows(task) for task in source.tasks}
    phrases = {task: task_phrase(task, source.settings) for task in rows}
    parts = [f"# {source.settings.get('data', source.name)}", verdict(rows, phrases)]
    parts += ["\n".join(f"- {line}" for line in remarks(rows, phrases))]
    for task, found in rows.items():
        parts += [f"## {task_title(task, source.settings)}", table(found)]
    edges = edge_notes(source, phrases)
    if edges:
        parts.append("At the edge of what was searched: " + "; ".join(edges) + ".")
    parts += [READING, _facts(source)]
    return "\n\n".join(part for part in parts if part) + "\n"


READING = (
    "UA, RA, TA, MIA in percent, gap to Retrain in parentheses; Avg. Gap is the mean of the four "
    "gaps of the means, its ± the spread of the seeds' own. Closeness to Retrain is good, not "
    "height. RTE counts the mask's time."
)


def table(rows: list[Row]) -> str:
    """One task's rows as a Markdown table."""
    unit, divisor = time_unit(rows)
    head = ["", *(METRIC_NAMES[m] for m in METRICS), "Avg. Gap", f"RTE ({unit})", "settings"]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    for row in rows:
        cells = [" ".join(metric_cell(row, m)).strip() for m in METRICS]
        lines.append(
            [
                METHOD_NAMES[row.method],
                *cells,
                gap_cell(row),
                time_cell(row, divisor),
                settings_words(row.overrides),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _facts(source: Source) -> str:
    seeds = sorted({int(r["seed"]) for r in source.runs})
    lines = [f"- command: `{source.command}`"] if source.command else []
    lines.append(f"- seeds: {', '.join(map(str, seeds))}")
    if source.settings.get("tuning_seed") is not None and source.of("search"):
        lines.append(
            f"- settings searched on seed {source.settings['tuning_seed']}, which is not among "
            f"them, by the smallest Avg. Gap: {len(source.of('search'))} trials"
        )
    lines += [f"- {name}: {value}" for name, value in source.machine.items()]
    return "\n".join(lines)
