"""Fills the HTML template; the result needs no other file and no network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from salun_fast import config as configs
from salun_fast import files
from salun_fast.data import ImageData
from salun_fast.evaluation.gap import METRICS
from salun_fast.experiment import Row
from salun_fast.records import EXAMPLES
from salun_fast.report.pictures import data_uri
from salun_fast.report.plot import gap_plot
from salun_fast.report.search import edge_notes
from salun_fast.report.shell import fill
from salun_fast.report.source import Record, Source
from salun_fast.report.verdict import remarks, verdict
from salun_fast.report.words import (
    METHOD_NAMES,
    METHOD_NOTES,
    METRIC_NAMES,
    gap_cell,
    metric_cell,
    settings_words,
    task_phrase,
    task_title,
    time_cell,
    time_unit,
)

TEMPLATE = "template.html"
SHOWN_IMAGES = 10
EPOCH_COLUMNS = ("epoch", "lr", "loss", "ua", "ra", "ta", "images_per_second")


@dataclass(frozen=True)
class TableLine:
    """method: its internal name; cells: (value, gap) per metric; best: smallest Avg. Gap."""

    method: str
    name: str
    note: str
    cells: list[tuple[str, str]]
    gap: str
    time: str
    settings: str
    best: bool


@dataclass(frozen=True)
class TaskTable:
    title: str
    time_unit: str
    lines: list[TableLine]


@dataclass(frozen=True)
class Gallery:
    """rows: (picture or None, true label, [(predicted label, is it the true one)] per method)."""

    title: str
    methods: list[str]
    rows: list[tuple[str | None, str, list[tuple[str, bool]]]]


@dataclass(frozen=True)
class LayerChart:
    """layers: (parameter, density in percent); folded: shown on demand only."""

    title: str
    facts: str
    layers: list[tuple[str, float]]
    folded: bool

    @staticmethod
    def of(title: str, run: Record, *, most_open: float = math.inf) -> LayerChart:
        """Of a run with a mask. most_open: layers beyond which the chart is folded."""
        mask = run["mask"]
        facts = (
            f"{mask['count']:,} of {mask['numel']:,} weights may move "
            f"({100 * mask['density']:.2f} %), seed {run['seed']}, "
            f"fingerprint {mask['fingerprint'][:16]}"
        )
        layers = [(name, 100 * share) for name, share in mask["layers"].items()]
        return LayerChart(title, facts, layers, len(layers) > most_open)


def write_report(
    source: Source,
    path: str | os.PathLike[str],
    *,
    data: ImageData | None = None,
) -> None:
    """Write ``path`` in one step. data: for the pictures and class names of forget images."""
    files.write_text(path, render(source, data=data))


def render(source: Source, *, data: ImageData | None = None) -> str:
    """The page as a string."""
    classes = data.classes if data is not None else ()
    rows = {task: source.rows(task) for task in source.tasks}
    titles = {task: task_title(task, source.settings, classes) for task in rows}
    phrases = {task: task_phrase(task, source.settings, classes) for task in rows}
    return fill(
        TEMPLATE,
        name=source.name,
        subtitle=_subtitle(source),
        verdict=verdict(rows, phrases) if rows else _training_verdict(source),
        remarks=remarks(rows, phrases),
        tables=[_table(titles[task], found) for task, found in rows.items()],
        metric_names=[METRIC_NAMES[m] for m in METRICS],
        plot=gap_plot({titles[task]: found for task, found in rows.items()}),
        kept_images=EXAMPLES,
        attack=_attack(source),
        has_retrain=any(r["method"] == "retrain" for r in source.runs),
        galleries=[_gallery(source, task, titles[task], data) for task in rows],
        charts=_charts(source, titles),
        certificates=certificates(source.runs, titles),
        folded_certificates=False,
        history=_history(source),
        searched=_searched(source, titles),
        edges=edge_notes(source, phrases),
        tuning_seed=source.settings.get("tuning_seed"),
        configuration=configs.to_yaml(source.settings),
        machine=source.machine,
        command=source.command,
        several_seeds=any(len(row.seeds) > 1 for found in rows.values() for row in found),
    )


def _subtitle(source: Source) -> str:
    seeds = sorted({int(r["seed"]) for r in source.runs}) or [int(source.settings["seed"])]
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    settings = source.settings
    width = "" if settings["width"] is None else f", width {settings['width']:g}"
    return f"{settings['data']} · {settings['model']}{width} · {counted}"


def _attack(source: Source) -> str:
    """On how many images the membership attack was fitted; they may have been capped."""
    used = [r["metrics"].get("mia_sample_sizes") for r in source.runs]
    sizes = sorted({found["members"] for found in used if found})
    if not sizes:
        return ""
    counted = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"fitted on {counted} retain images and as many test images"


def _training_verdict(source: Source) -> str:
    if not source.history:
        return "This run has no finished epoch yet."
    last = source.history[-1]
    shares = [("training images", last.get("ra")), ("test images", last.get("ta"))]
    words = " and ".join(f"{v:.2f} % of the {what}" for what, v in shares if v is not None)
    return f"After {last['epoch']} epochs the model is right on {words or 'no set it was shown'}."


def _table(title: str, rows: list[Row]) -> TaskTable:
    unit, divisor = time_unit(rows)
    judged = [row for row in rows if row.gaps and row.method not in ("original", "retrain")]
    best = min(judged, key=lambda row: row.average_gap, default=None)
    lines = [
        TableLine(
            method=row.method,
            name=METHOD_NAMES[row.method],
            note=METHOD_NOTES[row.method],
            cells=[metric_cell(row, metric) for metric in METRICS],
            gap=gap_cell(row),
            time=time_cell(row, divisor),
            settings=settings_words(row.overrides),
            best=row is best,
        )
        for row in rows
    ]
    return TaskTable(title, unit, lines)


def _gallery(source: Source, task: str, title: str, data: ImageData | None) -> Gallery:
    """Predictions before and after on the same forget images, one seed."""
    seed = min(int(r["seed"]) for r in source.runs if r["task"] == task)
    shown = {
        r["method"]: r["examples"]
        for r in source.runs
        if (r["task"], r["seed"]) == (task, seed) and r.get("examples")
    }
    methods = [m for m in METHOD_NAMES if m in shown]
    if not methods:
        return Gallery(title, [], [])
    first = shown[methods[0]]
    places = list(enumerate(first["labels"]))
    rows = []
    wrong = [sum(e["predicted"][i] != t for e in shown.values()) for i, t in places]
    places.sort(key=lambda place: -wrong[place[0]])
    for place, true in places[:SHOWN_IMAGES]:
        picture = None if data is None else data_uri(data.train.images[first["indices"][place]])
        said = [shown[m]["predicted"][place] for m in methods]
        rows.append((picture, _label(true, data), [(_label(p, data), p == true) for p in said]))
    return Gallery(title, [METHOD_NAMES[m] for m in methods], rows)


def _label(index: int, data: ImageData | None) -> str:
    known = data is not None and 0 <= index < len(data.classes)
    return data.classes[index] if data is not None and known else str(index)


def _charts(source: Source, titles: dict[str, str]) -> list[LayerChart]:
    runs = {title: source.run(task, "salun") for task, title in titles.items()}
    return [LayerChart.of(title, run) for title, run in runs.items() if run and run.get("mask")]


def certificates(runs: Iterable[Record], titles: Mapping[str, str]) -> list[Record]:
    """One line per run that has a freeze certificate. titles: of the tasks."""
    return [
        {
            "task": titles[r["task"]],
            "name": METHOD_NAMES[r["method"]],
            "seed": r["seed"],
            **r["certificate"],
        }
        for r in runs
        if r.get("certificate")
    ]


def _history(source: Source) -> list[list[str]]:
    return [[_number(epoch.get(name)) for name in EPOCH_COLUMNS] for epoch in source.history]


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _searched(source: Source, titles: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Every trial of the search: task, method, settings, Avg. Gap."""
    return [
        (
            titles.get(str(r["task"]), str(r["task"])),
            METHOD_NAMES[r["method"]],
            settings_words(r["overrides"]),
            f"{r['average_gap']:.2f}",
        )
        for r in source.of("search")
    ]
