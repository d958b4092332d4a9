"""The plots: ours in blue, everything else in grey, the bandwidth's floor as a dashed line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.report import Record
from benchmarks.trial import OURS, Row

BLUE, GREY, DARK, RED = "#0072B2", "#A6A6A6", "#4D4D4D", "#D55E00"
LOG_FROM = 20  # a panel whose slowest bar is so many times its fastest is drawn on a log scale
FLOOR = "bytes ÷ bandwidth"


def write(records: Sequence[Record], source: Path) -> list[Path]:
    """One PNG per picture that the records suffice for, named after ``source``."""
    written = []
    for name, draw in PICTURES.items():
        figure = draw(records)
        if figure is not None:
            path = source.with_name(f"{source.stem}_{name}.png")
            figure.savefig(path, dpi=140, bbox_inches="tight")
            written.append(path)
    return written


# --- bars per op ----------------------------------------------------------------------------------


def ops(records: Sequence[Record]) -> Figure | None:
    """Every way of every op, at the size of ResNet-18."""
    shown = [r for r in records if _plain(r) and r.size.name == "ResNet-18" and r.ours.floor]
    if not shown:
        return None
    heights = [len(_timed(record)) + 1 for record in shown]
    columns = _in_two_columns(shown, heights)
    figure = Figure(figsize=(13, 0.3 * max(sum(h for _, h in column) for column in columns) + 1))
    grid = figure.add_gridspec(1, 2, wspace=0.75)
    for index, column in enumerate(columns):
        cells = grid[index].subgridspec(
            len(column), 1, height_ratios=[h for _, h in column], hspace=0.55
        )
        for row, (record, _) in enumerate(column):
            _bars(figure.add_subplot(cells[row]), record)
    figure.suptitle("ms for ResNet-18's 11.2 M weights, fp32, density 0.5", y=0.97)
    return figure


def _plain(record: Record) -> bool:
    size = record.size
    return size.dtype == "fp32" and size.density == 0.5 and size.threads is None


def _in_two_columns(
    records: Sequence[Record], heights: Sequence[int]
) -> list[list[tuple[Record, int]]]:
    columns: list[list[tuple[Record, int]]] = [[], []]
    for pair in sorted(zip(records, heights, strict=True), key=lambda pair: -pair[1]):
        min(columns, key=lambda column: sum(h for _, h in column)).append(pair)
    return columns if columns[1] else [columns[0]]


def _timed(record: Record) -> list[Row]:
    return [row for row in record.rows if row.seconds is not None]


def _bars(axes: Axes, record: Record) -> None:
    rows = sorted(_timed(record), key=lambda row: row.seconds)
    times = [row.seconds * 1e3 for row in rows]
    axes.barh(range(len(rows)), times, color=[_colour(row) for row in rows], height=0.72)
    if times[-1] > LOG_FROM * times[0]:
        axes.set_xscale("log")
        axes.set_xlim(0.3 * times[0], 6 * times[-1])
    else:
        axes.set_xlim(0, 1.3 * times[-1])
    for index, (row, time) in enumerate(zip(rows, times, strict=True)):
        ratio = "" if row.own else f"  {row.ratio:.3g}x"
        axes.text(time, index, f" {time:,.3g}{ratio}", va="center", fontsize=8, color=DARK)
    axes.axvline(record.ours.floor * 1e3, color=RED, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.way for row in rows], fontsize=8)
    _emphasise(axes, rows)
    axes.invert_yaxis()
    axes.set_title(record.case, fontsize=10, loc="left")
    _tidy(axes)


def _colour(row: Row) -> str:
    return BLUE if row.own else GREY


def _emphasise(axes: Axes, rows: Iterable[Row]) -> None:
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if row.own:
            label.set_color(BLUE)
            label.set_fontweight("bold")


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.minorticks_off()


# --- time against size ----------------------------------------------------------------------------

LINES = {  # peers drawn, and their line and marker
    "torch._foreach_add_": ("--", "s"),
    "double argsort": ("-", "s"),
    "torch.kthvalue": ("--", "^"),
    "numpy.partition": (":", "D"),
    "grad *= mask (int64) + AdamW(for-loop)": ("-", "s"),
    "grad *= mask (bool) + AdamW(fused)": ("--", "^"),
    "AdamW(fused), no mask": (":", "D"),
}


def size(records: Sequence[Record]) -> Figure | None:
    """Log-log, from what fits a cache to what hardly fits the machine."""
    return _panels(_group(r for r in records if r.claim == "scaling" and not r.size.threads),
                   _against_size, "Time against size: ms, fp32, density 0.5")  # fmt: skip


def _against_size(axes: Axes, records: Sequence[Record]) -> None:
    records = sorted(records, key=lambda record: record.size.weights)
    weights = [record.size.weights for record in records]
    for way, (line, marker) in LINES.items():
        points = [
            (record.size.weights, row.seconds * 1e3)
            for record in records
            for row in _timed(record)
            if row.way == way
        ]
        if points:
            axes.plot(*zip(*points, strict=True), line, marker=marker, color=GREY, label=way,
                      markersize=4)  # fmt: skip
    axes.plot(weights, [record.ours.floor * 1e3 for record in records], "--", color=RED,
              linewidth=1, label=FLOOR)  # fmt: skip
    axes.plot(weights, [record.ours.seconds * 1e3 for record in records], "o-", color=BLUE,
              linewidth=2, label=OURS)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("weights", fontsize=8)


def _group(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case, []).append(record)
    return found


def _panels(
    groups: dict[str, list[Record]],
    draw: Callable[[Axes, Sequence[Record]], None],
    title: str,
) -> Figure | None:
    if not groups:
        return None
    figure = Figure(figsize=(4.4 * len(groups), 4))
    for index, (case, records) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), index + 1)
        draw(axes, records)
        axes.set_title(case, fontsize=10, loc="left")
        axes.legend(fontsize=7, frameon=False)
        _tidy(axes)
    figure.suptitle(title)
    return figure


# --- threads --------------------------------------------------------------------------------------


def threads(records: Sequence[Record]) -> Figure | None:
    """Ours and its quickest peer with one thread and with more."""
    return _panels(_group(r for r in records if r.size.threads), _by_threads,
                   "Threads: ms for a DDPM UNet's 35.7 M weights, fp32, density 0.5")  # fmt: skip


def _by_threads(axes: Axes, records: Sequence[Record]) -> None:
    records = sorted(records, key=lambda record: record.size.threads)
    ways = [OURS, *(way for way in LINES if any(row.way == way for row in _timed(records[0])))]
    width = 0.8 / len(ways)
    for index, way in enumerate(ways):
        rows = [next(row for row in record.rows if row.way == way) for record in records]
        places = [place + (index - (len(ways) - 1) / 2) * width for place in range(len(rows))]
        shade = BLUE if way == OURS else GREY
        axes.bar(places, [row.seconds * 1e3 for row in rows], width * 0.9, color=shade)
    return None


PICTURES: dict[str, Callable[[Sequence[Record]], Figure | None]] = {
    "ops": ops,
    "size": size,
}
