"""The page of diffusion runs: pictures first, then the numbers; it needs no other file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salun_fast import config as configs
from salun_fast import files
from salun_fast.report.diffusion.pictures import (
    animated,
    hero,
    lead_method,
    missing,
    others,
)
from salun_fast.report.diffusion.plot import Curve, loss_plot
from salun_fast.report.diffusion.source import DiffusionSource, Record, read_diffusion
from salun_fast.report.diffusion.summary import DiffusionRow, Measured, cell, rows
from salun_fast.report.diffusion.verdict import (
    Rows,
    controlled,
    mean_difference,
    remarks,
    verdict,
)
from salun_fast.report.diffusion.words import (
    LIMITS,
    MODEL_NAMES,
    NOTES,
    distance_name,
    reading,
    unbroken,
)
from salun_fast.report.grid import PIXEL_RATIO
from salun_fast.report.page import LayerChart, certificates
from salun_fast.report.pictures import gif_uri, gif_width, png_uri
from salun_fast.report.shell import fill
from salun_fast.report.words import (
    METHOD_NAMES,
    settings_words,
    time_cell,
    time_unit,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Folders = Sequence[str | os.PathLike[str]]
Cell = tuple[str, bool]  # text, and whether it is bold

TEMPLATE = "diffusion.html"
SIDES = (METHOD_NAMES["salun"], METHOD_NAMES["random_mask"])
OPEN_TASKS = 3  # with more, only the first task's parts are shown unfolded
OPEN_LAYERS = 64
OPEN_CERTIFICATES = 8


@dataclass(frozen=True)
class Figure:
    """width: in pixels of the page."""

    title: str
    uri: str
    width: int
    caption: str


@dataclass(frozen=True)
class TableLine:
    """method: its internal name; cells: in the order of the table's columns."""

    method: str
    name: str
    note: str
    settings: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    lines: list[TableLine]


@dataclass(frozen=True)
class ControlTable:
    """lines, mean: a label, then SalUn and the random mask for each of the columns."""

    columns: list[str]
    lines: list[list[str]]
    mean: list[str]
    difference: str


@dataclass(frozen=True)
class HeatTable:
    """rows: (label, is it what was forgotten, [percent or None per method])."""

    title: str
    methods: list[str]
    rows: list[tuple[str, bool, list[float | None]]]


def write_diffusion_report(
    folders: str | os.PathLike[str] | Folders, path: str | os.PathLike[str]
) -> None:
    """Write ``path`` in one step. folders: a demo's folder, or run folders to put side by side."""
    chosen = [folders] if isinstance(folders, (str, os.PathLike)) else folders
    files.write_text(path, render_diffusion(read_diffusion(chosen)))


def render_diffusion(source: DiffusionSource) -> str:
    """The page as a string."""
    found = {task: rows(source, task) for task in source.tasks}
    shown, folded = _open_tasks(source)
    proofs = certificates(source.runs, {task: title(task) for task in found})
    return fill(
        TEMPLATE,
        name=source.name,
        subtitle=_subtitle(source),
        verdict=unbroken(verdict(found) if found else _unfinished(source)),
        remarks=[unbroken(line) for line in remarks(found)],
        figures=[f for task in shown if (f := _hero(source, task))],
        animations=[f for task in shown if (f := _animation(source, task))],
        more=_more(source, shown, folded),
        lost=missing(source),
        tables=[result_table(source, task, found[task]) for task in shown],
        folded_tables=[result_table(source, task, found[task]) for task in folded],
        reading=reading(source),
        control=control_table(found),
        sides=SIDES,
        heats=_heats(source, found, shown),
        folded_heats=_heats(source, found, folded),
        plot=loss_plot(_curves(source, shown)),
        plotted=f"{title(shown[0])}, the smallest seed of each method." if shown else "",
        charts=_charts(source, shown),
        certificates=proofs,
        folded_certificates=len(proofs) > OPEN_CERTIFICATES,
        configuration=configs.to_yaml(_configuration(source, shown)),
        machine=source.machine,
        command=source.command,
        limits=LIMITS,
    )


def title(task: str) -> str:
    return f"Forgetting {task}"


def _subtitle(source: DiffusionSource) -> str:
    seeds = source.seeds or [source.settings.get("seed", 0)]
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    parts = [source.settings.get("data"), MODEL_NAMES[source.model], counted]
    return " · ".join(str(part) for part in parts if part)


def _unfinished(source: DiffusionSource) -> str:
    if not source.history:
        return "There is no finished run here yet."
    last = source.history[-1]
    return f"After {last['step']:,} steps the loss is {last['loss']:.4g}."


def _open_tasks(source: DiffusionSource) -> tuple[list[str], list[str]]:
    """The tasks shown unfolded, and the rest; of many, the one that was also retrained first."""
    tasks = source.tasks
    if len(tasks) <= OPEN_TASKS:
        return tasks, []
    lead = next((t for t in tasks if source.of(t, "retrain")), tasks[0])
    return [lead], [task for task in tasks if task != lead]


# --- pictures -------------------------------------------------------------------------------------


def _hero(source: DiffusionSource, task: str) -> Figure | None:
    picture = hero(source, task)
    method = lead_method(source, task)
    run = source.first(task, method or "original")
    if picture is None or run is None:
        return None
    caption = f"Seed {run['seed']}. The same noise in every panel; outlined: what is forgotten."
    return _figure(title(task), picture, caption)


def _figure(heading: str, picture: Image, caption: str = "") -> Figure:
    return Figure(heading, png_uri(picture), picture.width // PIXEL_RATIO, caption)


def _animation(source: DiffusionSource, task: str) -> Figure | None:
    run = animated(source, task)
    if run is None:
        return None
    steps = run.get("samples_steps") or []
    frames = f", {len(steps)} frames from step {steps[0]:,} to {steps[-1]:,}" if steps else ""
    caption = f"{METHOD_NAMES[run['method']]}, seed {run['seed']}{frames}."
    width = gif_width(run["animation"]) // PIXEL_RATIO
    return Figure(title(task), gif_uri(run["animation"]), width, caption)


def _more(source: DiffusionSource, shown: Sequence[str], folded: Sequence[str]) -> list[Figure]:
    """The other methods of the tasks shown, and the other tasks."""
    rest = [(t, f"{title(t)}: the other methods", others(source, t)) for t in shown]
    rest += [(t, title(t), hero(source, t)) for t in folded]
    return [_figure(heading, picture) for _, heading, picture in rest if picture is not None]


# --- tables ---------------------------------------------------------------------------------------


def result_table(source: DiffusionSource, task: str, found: Sequence[DiffusionRow]) -> Table:
    """What was measured on a task, method by method; what was not has no column."""
    names = {
        "ua": "UA %",
        "ra": "RA %",
        "distance": distance_name(source.runs),
        "ratio": "÷ original",
        "clip_score": "CLIP score",
    }
    shown = {n: name for n, name in names.items() if any(getattr(row, n) for row in found)}
    smallest = min((row.distance.mean for row in found if row.distance), default=1.0)
    decimals = {"distance": 2 if smallest >= 1 else 4}
    unit, divisor = time_unit(found)
    lines = []
    for row in found:
        bold = {"ua": row.forgets, "ratio": row.keeps and row.method != "original"}
        scores = [
            (cell(getattr(row, name), decimals.get(name, 2)), bold.get(name, False))
            for name in shown
        ]
        lines.append(_line(row, [*scores, (time_cell(row, divisor), False)]))
    return Table(title(task), [*shown.values(), f"RTE {unit}"], lines)


def _line(row: DiffusionRow, cells: list[Cell]) -> TableLine:
    name, note = METHOD_NAMES[row.method], NOTES[row.method]
    return TableLine(row.method, name, note, settings_words(row.overrides), cells)


def control_table(found: Rows) -> ControlTable | None:
    """None for fewer than two tasks that have both."""
    pairs = controlled(found)
    if len(pairs) < 2:
        return None
    shown = {"UA %": "ua", "RA %": "ra", "distance ÷ original": "ratio"}
    values = {
        task: [getattr(row, name) for name in shown.values() for row in pair]
        for task, pair in pairs.items()
    }
    means = [_over_tasks(column) for column in zip(*values.values(), strict=True)]
    return ControlTable(
        list(shown),
        [[task, *(cell(value) for value in line)] for task, line in values.items()],
        ["mean ± std over tasks", *(cell(mean) for mean in means)],
        mean_difference(pairs.values()),
    )


def _over_tasks(values: Sequence[Measured | None]) -> Measured | None:
    return Measured.of([value.mean for value in values if value is not None])


def _heats(source: DiffusionSource, found: Rows, tasks: Sequence[str]) -> list[HeatTable]:
    return [heat for t in tasks if (heat := _heat(source, t, found[t])).rows]


def _heat(source: DiffusionSource, task: str, found: Sequence[DiffusionRow]) -> HeatTable:
    judged = [row for row in found if row.per_row]
    labels = dict.fromkeys(label for row in judged for label in row.per_row)
    forgotten = {
        r["rows"][index] for r in source.runs if r["task"] == task for index in r["forgotten"]
    }
    lines = [
        (label, label in forgotten, [r.per_row.get(label) for r in judged]) for label in labels
    ]
    return HeatTable(title(task), [METHOD_NAMES[row.method] for row in judged], lines)


# --- below ----------------------------------------------------------------------------------------


def _curves(source: DiffusionSource, tasks: Sequence[str]) -> dict[str, tuple[str, Curve]]:
    """Of the first task's methods, smallest seed; else of the run that is not finished."""
    if not tasks:
        return {"": ("this run", source.history)} if source.history else {}
    found = {m: source.first(tasks[0], m) for m in source.methods(tasks[0])}
    return {
        method: (METHOD_NAMES[method], run["history"])
        for method, run in found.items()
        if run and run.get("history") and method != "retrain"
    }


def _charts(source: DiffusionSource, tasks: Sequence[str]) -> list[LayerChart]:
    runs = [(task, source.first(task, "salun")) for task in tasks]
    return [
        LayerChart.of(title(task), run, most_open=OPEN_LAYERS)
        for task, run in runs
        if run and run.get("mask")
    ]


def _configuration(source: DiffusionSource, tasks: Sequence[str]) -> Record:
    """The folder's settings, and each method's of the first task."""
    runs = [source.first(tasks[0], m) for m in source.methods(tasks[0])] if tasks else []
    methods = {run["method"]: run["settings"] for run in runs if run and run.get("settings")}
    return {**source.settings, **({"methods": methods} if methods else {})}
