"""The tables: pytest-benchmark's JSON, as ``conftest.py`` fills it, to Markdown.

``python -m benchmarks.report benchmarks/results/cpu.json`` writes tables and plots again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.case import DTYPES, Size
from benchmarks.trial import Row, Verdict, megabytes, milliseconds

SAME = 0.02  # times closer than this are called the same


@dataclass(frozen=True)
class Cell:
    """What a claim was measured at."""

    name: str
    weights: int
    dtype: str
    density: float | None
    threads: int | None

    @classmethod
    def of(cls, size: Size) -> Cell:
        dtype = DTYPES[size.dtype] if size.numel > 1 else ""
        return cls(size.name, size.numel, dtype, size.density, size.threads)

    def __str__(self) -> str:
        name = self.name or f"{self.weights:.0e} weights".replace("e+0", "e")
        density = "" if self.density is None else f"density {self.density:g}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return ", ".join(filter(None, [name, self.dtype, density, threads]))


@dataclass(frozen=True)
class Record:
    """One case at one size. claim: the file; says: what the file's first lines say."""

    claim: str
    says: str
    case: str
    size: Cell
    rows: list[Row]

    @classmethod
    def of(cls, info: dict[str, Any]) -> Record:
        rows = [
            Row(**(row | {"verdicts": [Verdict(**each) for each in row["verdicts"]]}))
            for row in info["rows"]
        ]
        return cls(info["claim"], info["says"], info["case"], Cell(**info["size"]), rows)

    @property
    def ours(self) -> Row:
        return self.rows[0]


@dataclass(frozen=True)
class Run:
    """All of one JSON file."""

    records: list[Record]
    device: str
    facts: dict[str, Any]
    command: str
    date: str
    left_out: list[str]

    @classmethod
    def read(cls, path: Path) -> Run:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            [Record.of(each["extra_info"]) for each in found["benchmarks"]],
            found["device"],
            found["facts"],
            found["command"],
            found["datetime"].partition("T")[0],
            found["left_out"],
        )


def markdown(run: Run, plots: Sequence[str] = ()) -> str:
    """``plots``: names of the files beside it, each called by the claim it shows first."""
    parts = [
        f"# Benchmarks: {run.device.upper()}",
        f"`{run.command}`, {run.date}, {run.facts['processor']}, {run.facts['threads']} threads.",
        _HOW_TO_READ,
        *(f"![{plot}]({plot})" for plot in plots),
        "## Targets",
        _count(run.records),
        "\n".join(_targets(run.records)),
        "## Where salun-fast is slower",
        "\n".join(_slower(run.records)) or "Nowhere in this run.",
        *(part for claim, records in _by_claim(run.records) for part in _section(claim, records)),
    ]
    if run.left_out:
        parts += ["## Left out", "\n".join(f"* {each}" for each in run.left_out)]
    facts = "\n".join(f"* {name}: {value}" for name, value in run.facts.items())
    return "\n\n".join([*parts, "## Machine", facts]) + "\n"


_HOW_TO_READ = """\
Medians of rounds in which ours, every peer and the ceiling `a.add_(b)` take turns; the ceiling, on
512 MB, runs before each of them, so that all find their data in memory and none in a cache. Slow
ways were timed once. *Share of ceiling*: the bytes the op must touch over the bandwidth of the
ceiling in the same rounds, as a share of its time. *Extra memory*: beside weights, gradients and
dense state: masks and copies kept, and the growth of the peak during a call."""


def _by_claim(records: Iterable[Record]) -> Iterator[tuple[str, list[Record]]]:
    order = list(dict.fromkeys(record.claim for record in records))
    ordered = sorted(records, key=lambda record: order.index(record.claim))
    for claim, group in groupby(ordered, key=lambda record: record.claim):
        yield claim, list(group)


def _count(records: Sequence[Record]) -> str:
    reached = [v.reached for record in records for row in record.rows for v in row.verdicts]
    return f"{sum(reached)} of {len(reached)} are reached."


def _targets(records: Sequence[Record]) -> Iterator[str]:
    yield "| what | size | target | against | found | |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        for row in record.rows:
            for verdict in row.verdicts:
                against = "" if row.own else row.way
                yield (
                    f"| {record.case} | {record.size} | {verdict.target} | {against} "
                    f"| {verdict.found} | {word(verdict)} |"
                )


def _slower(records: Sequence[Record]) -> Iterator[str]:
    """The worst first."""
    found = [
        (row.ratio, f"{record.case}, {record.size}", row)
        for record in records
        for row in record.rows
        if row.ratio is not None and row.ratio < 1 - SAME
    ]
    for ratio, case, row in sorted(found, key=lambda each: each[0]):
        yield f"* {case}: {1 / ratio:.2f}x slower than {row.way} ({row.work})"


def _section(claim: str, records: Sequence[Record]) -> Iterator[str]:
    yield f"## {claim}"
    yield records[0].says
    yield table(records)


def table(records: Iterable[Record]) -> str:
    lines = [
        "| case | way | ms | salun-fast is | share of ceiling | extra memory, MB | target | work |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for record in records:
        lines += [_line(f"{record.case}: {record.size}", row) for row in record.rows]
    return "\n".join(lines)


def _line(case: str, row: Row) -> str:
    return "| " + " | ".join([
        case if row.own else "",
        f"**{row.way}**" if row.own else row.way,
        "" if row.seconds is None else milliseconds(row.seconds),
        "" if row.own else against(row),
        "" if row.share is None else f"{row.share:.0%}",
        "" if row.memory is None else megabytes(row.memory),
        "; ".join(f"{each.target}: {word(each)}" for each in row.verdicts),
        row.skipped or row.work,
    ]) + " |"  # fmt: skip


def against(row: Row) -> str:
    """How ours compares with this way, in words."""
    if row.ratio is None:
        return ""
    if row.ratio < 1 - SAME:
        return f"{1 / row.ratio:.2f}x **slower**"
    return f"{row.ratio:.2f}x faster" if row.ratio > 1 + SAME else "as fast"


def word(verdict: Verdict) -> str:
    return "reached" if verdict.reached else "**MISSED**"


def plain_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    return "\n".join(
        f"{row.way:45} {'' if row.seconds is None else milliseconds(row.seconds):>10} ms"
        f"  {'' if row.own else against(row).replace('*', ''):>14}"
        f"  {'' if row.memory is None else megabytes(row.memory) + ' MB':>12}"
        f"  {row.skipped}{'; '.join(f'{v.target}: {v.found}, {word(v)}' for v in row.verdicts)}"
        for row in rows
    ).replace("**", "")


def write(source: Path) -> list[Path]:
    """Tables and plots beside the JSON, under its name."""
    from benchmarks import plots

    run = Run.read(source)
    drawn = plots.write(run.records, source)
    tables = source.with_suffix(".md")
    tables.write_text(markdown(run, [path.name for path in drawn]), encoding="utf-8")
    return [tables, *drawn]


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        print(path)
