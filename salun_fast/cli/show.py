"""What the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from salun_fast import bits

if TYPE_CHECKING:
    from salun_fast.evaluation import ClassifierMetrics
    from salun_fast.mask import SaliencyMask
    from salun_fast.methods import TrainResult
    from salun_fast.methods.diffusion import DiffusionTrainResult
    from salun_fast.report import Source
    from salun_fast.report.diffusion.source import DiffusionSource
    from salun_fast.run import RunFolder


def console() -> Console:
    """Made anew at each call, so that it follows a redirected standard output."""
    return Console(highlight=False, markup=False)  # a path may hold brackets


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, the others are numbers."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console().print(grid)
    console().print()


def facts(title: str, values: Mapping[str, object]) -> None:
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in values.items():
        grid.add_row(key, str(value))
    grid.show_header = False
    console().print(grid)
    console().print()


def advice(text: str) -> None:
    console().print(text, style="yellow")


def written(*paths: Path) -> None:
    for path in paths:
        console().print(f"wrote {path}", soft_wrap=True)


def job_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(),
    )


def trained(result: TrainResult, folder: RunFolder) -> None:
    last = result.history[-1]
    test = "" if last.ta is None else f", test {last.ta:.2f} %"
    console().print(
        f"trained {last.epoch} epochs in {result.seconds['total']:.1f} s: "
        f"training images {last.ra:.2f} %{test}"
    )
    written(folder.model_file, folder.report_file)


def judged(records: Sequence[Mapping[str, Any]]) -> None:
    """Metrics of models before and after."""
    from salun_fast.report.words import METHOD_NAMES

    rows = [[METHOD_NAMES[r["method"]], *_percent(r["metrics"])] for r in records]
    table("Percent", ["", "UA", "RA", "TA", "MIA"], rows)


def metrics(measured: Mapping[str, ClassifierMetrics], *, yardstick: str | None) -> None:
    """Percent per model; gaps to the yardstick where there is one."""
    from salun_fast.evaluation import average_gap

    columns = ["", "UA", "RA", "TA", "MIA"]
    rows = [[name, *_percent(found.as_dict())] for name, found in measured.items()]
    if yardstick is not None:
        columns.append("Avg. Gap")
        for row, found in zip(rows, measured.values(), strict=True):
            row.append(f"{average_gap(found, measured[yardstick]):.2f}")
    table("Percent", columns, rows)
    sizes = next(iter(measured.values())).mia_sample_sizes
    if sizes:
        words = ", ".join(f"{count:,} {kind.replace('_', '-')}" for kind, count in sizes.items())
        console().print(f"MIA used {words} images", soft_wrap=True)


def certificate(found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    style = "green" if found["holds"] else "bold red"
    console().print(
        f"freeze certificate: {found['frozen']:,} frozen weights, {found['changed']:,} changed",
        style=style,
    )


def trained_steps(result: DiffusionTrainResult) -> None:
    last = result.history[-1]
    seconds = result.seconds["total"]
    console().print(f"trained {last.step:,} steps in {seconds:.1f} s: loss {last.loss:.4g}")


def unlearned(records: Sequence[Mapping[str, Any]]) -> None:
    """Numbers of a diffusion model before and after, where anybody judged it."""
    judged = {r["method"]: r["metrics"] for r in records if r["metrics"]}
    if judged:
        generated(judged)
    else:
        advice(
            "Nobody judged the pictures: look at the report, or give `salun-fast evaluate` a "
            "judge=RUN_FOLDER (classes) or a clip_model=FOLDER (prompts)."
        )
    certificate(records[-1]["certificate"])


def generated(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """What a judge or a CLIP model says of pictures, per method."""
    from salun_fast.report.words import METHOD_NAMES

    numbers = {"ua": "UA %", "ra": "RA %", "frechet": "distance"}
    numbers |= {"clip_score": "CLIP score", "clip_score_forgotten": "CLIP score, forgotten"}
    present = [k for k in numbers if any(found.get(k) is not None for found in measured.values())]
    rows = [
        [METHOD_NAMES[method], *(_number(found.get(key)) for key in present)]
        for method, found in measured.items()
    ]
    table("Generated pictures", ["", *(numbers[key] for key in present)], rows)
    first = next(iter(measured.values()))
    if first.get("judge"):
        console().print(
            f"UA, RA: called so by {first['judge']}, right on {first['judge_accuracy']:.1f} % of "
            "real test images",
            soft_wrap=True,
        )
    if first.get("frechet"):
        console().print(f"distance: {first['frechet']['label']}", soft_wrap=True)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value['value']:.4g}" if isinstance(value, Mapping) else f"{value:.2f}"


def comparison(source: Source) -> None:
    """Means per task and the verdict; gaps and spreads of the four metrics are in the report."""
    from salun_fast.evaluation import METRICS
    from salun_fast.report.verdict import verdict
    from salun_fast.report.words import (
        METHOD_NAMES,
        METRIC_NAMES,
        gap_cell,
        task_phrase,
        task_title,
        time_cell,
        time_unit,
    )

    rows = {task: source.rows(task) for task in source.tasks}
    for task, found in rows.items():
        unit, divisor = time_unit(found)
        lines = [
            [
                METHOD_NAMES[row.method],
                *(f"{row.mean[m]:.2f}" for m in METRICS),
                gap_cell(row),
                time_cell(row, divisor),
            ]
            for row in found
        ]
        columns = ["", *METRIC_NAMES.values(), "Avg. Gap", f"RTE {unit}"]
        table(task_title(task, source.settings), columns, lines)
    phrases = {task: task_phrase(task, source.settings) for task in rows}
    console().print(verdict(rows, phrases))


def diffusion(folders: Sequence[Path]) -> DiffusionSource:
    """Tables per task and the verdict on diffusion runs; returns what they were read from."""
    from salun_fast.report.diffusion.page import result_table
    from salun_fast.report.diffusion.source import read_diffusion
    from salun_fast.report.diffusion.summary import rows
    from salun_fast.report.diffusion.verdict import verdict

    source = read_diffusion(folders)
    found = {task: rows(source, task) for task in source.tasks}
    for task in found:
        shown = result_table(source, task, found[task])
        lines = [[line.name, *(value for value, _ in line.cells)] for line in shown.lines]
        table(shown.title, ["", *shown.columns], lines)
    console().print(verdict(found))
    return source


def mask_facts(mask: SaliencyMask) -> None:
    facts(
        "Mask",
        {
            "density": f"{mask.density:.6f} ({mask.count:,} of {mask.numel:,} weights may move)",
            "parameters": len(mask.names),
            "fingerprint": mask.fingerprint,
        },
    )
    densities = mask.layer_densities()
    rows = [
        [
            name,
            " × ".join(map(str, mask.shapes[name])) or "scalar",
            f"{bits.count(mask.words[name]):,}",
            f"{100 * densities[name]:.2f} %",
        ]
        for name in mask.names
    ]
    table("Parameters", ["name", "shape", "may move", "density"], rows)


def mask_difference(first: SaliencyMask, second: SaliencyMask) -> None:
    """IoU and counts as a whole and per parameter."""
    iou = first.iou(second)  # refuses masks of different models by name
    shared = (first & second).count
    facts(
        "Masks",
        {
            "IoU": f"{iou:.6f}",
            "in both": f"{shared:,}",
            "only in the first": f"{first.count - shared:,}",
            "only in the second": f"{second.count - shared:,}",
            "densities": f"{first.density:.6f} and {second.density:.6f}",
            "same bits": "yes" if first.fingerprint == second.fingerprint else "no",
        },
    )
    rows = []
    for name in first.names:
        a, b = first[name], second[name]
        union = int((a | b).sum())
        both = int((a & b).sum())
        rows.append([name, f"{both / union:.4f}" if union else "–", f"{union - both:,}"])
    table("Parameters", ["name", "IoU", "bits that differ"], rows)


def _percent(values: Mapping[str, Any]) -> list[str]:
    return [f"{values[name]:.2f}" for name in ("ua", "ra", "ta", "mia")]
