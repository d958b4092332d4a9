"""The tables of diffusion runs as Markdown, with what is needed to repeat them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from salun_fast.report.diffusion.page import SIDES, Table, control_table, result_table
from salun_fast.report.diffusion.source import DiffusionSource, read_diffusion
from salun_fast.report.diffusion.summary import rows
from salun_fast.report.diffusion.verdict import remarks, verdict
from salun_fast.report.diffusion.words import LIMITS, MODEL_NAMES, reading


def diffusion_markdown(folder: str | os.PathLike[str]) -> str:
    """Verdict, one table per task, SalUn against the random mask, command, seeds and machine."""
    return markdown_of(read_diffusion([folder]))


def markdown_of(source: DiffusionSource) -> str:
    """The same of a source that is read already."""
    found = {task: rows(source, task) for task in source.tasks}
    heading = [source.settings.get("data"), MODEL_NAMES[source.model]]
    parts = [f"# {', '.join(str(word) for word in heading if word)}", verdict(found)]
    parts += ["\n".join(f"- {line}" for line in remarks(found))]
    for task, its_rows in found.items():
        table = result_table(source, task, its_rows)
        parts += [f"## {table.title}", _table(table)]
    control = control_table(found)
    if control is not None:
        lines = [*control.lines, control.mean]
        head = ["", *(f"{what}, {side}" for what in control.columns for side in SIDES)]
        parts += ["## SalUn against the random mask", _lines([head, *lines]), control.difference]
    parts += [reading(source), LIMITS, _facts(source)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    lines = [
        [line.name, *(f"**{v}**" if bold else v for v, bold in line.cells), line.settings]
        for line in table.lines
    ]
    return _lines([["", *table.columns, "settings"], *lines])


def _lines(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rest))


def _facts(source: DiffusionSource) -> str:
    lines = [f"- command: `{source.command}`"] if source.command else []
    lines.append(f"- seeds: {', '.join(map(str, source.seeds))}")
    lines += [f"- {name}: {value}" for name, value in source.machine.items()]
    return "\n".join(lines)
