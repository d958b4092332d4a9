"""The plots: ours in blue, everything else in grey, the bandwidth's floor as a dashed line."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from benchmarks.report import Record
from benchmarks.trial import OURS, Row

BLUE, GREY, DARK, RED = "#0072B2", "#A6A6A6", "#4D4D4D", "#D55E00"
LOG_FROM = 20  # a panel whose slowest bar is so many times its fastest is drawn on a log scale
BAR, TITLE_AND_TICKS = 0.25, 3  # inches per bar; bars' worth of a panel's rest
HATCHES = ("", "//", "..")  # of peers side by side
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
FLOOR = "bytes ÷ bandwidth"


def write(records: Sequence[Record], source: Path) -> list[Path]:
    """One PNG per picture that the records suffice for, named after ``source``."""
    written = []
    for name, draw in PICTURES.items():
        figure = draw(records)
        if figure is not None:
            path = source.with_name(f"{source.stem}_{name}.png")
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=130, bbox_inches="tight")
            # A palette takes a third of the bytes; the pictures have few colours.
            Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
            written.append(path)
    return written


# --- bars per op ----------------------------------------------------------------------------------


def ops(records: Sequence[Record]) -> Figure | None:
    """Every way of every op, at the size of ResNet-18; of the two Adams the one."""
    shown = [r for r in records if _plain(r) and r.ours.floor and r.case != "masked_adam_ (Adam)"]
    if not shown:
        return None
    columns = _in_two_columns(shown)
    height = BAR * max(sum(map(_height, column)) for column in columns) + 0.4
    figure = Figure(figsize=(13, height))
    for column, left in zip(columns, (0.2, 0.7), strict=False):
        top = height - 0.15
        for record in column:
            bars = BAR * (_height(record) - TITLE_AND_TICKS)
            top -= BAR * _height(record)
            axes = figure.add_axes((left, (top + BAR) / height, 0.27, bars / height))
            _bars(axes, record.rows, _ms, floor=(record.ours.floor or 0.0) * 1e3)
            axes.set_title(record.case, fontsize=10, loc="left")
    weights = shown[0].size.weights / 1e6
    _title(figure, f"ms per call on ResNet-18's {weights:.1f} M weights, fp32, density 0.5; "
                   f"dashed: {FLOOR}; x: how many times faster salun-fast is")  # fmt: skip
    return figure


def _plain(record: Record) -> bool:
    size = record.size
    return (size.name == "ResNet-18" and size.dtype == "fp32" and size.density in (None, 0.5)
            and size.threads is None)  # fmt: skip


def _ms(row: Row) -> float | None:
    return None if row.seconds is None else row.seconds * 1e3


def _megabytes(row: Row) -> float | None:
    return None if row.memory is None else row.memory / 1e6


def _height(record: Record) -> int:
    return len([row for row in record.rows if row.seconds is not None]) + TITLE_AND_TICKS


def _in_two_columns(records: Sequence[Record]) -> list[list[Record]]:
    """The highest first, each into the lower column."""
    columns: list[list[Record]] = [[], []]
    for record in sorted(records, key=_height, reverse=True):
        min(columns, key=lambda column: sum(map(_height, column))).append(record)
    return [column for column in columns if column]


def _bars(
    axes: Axes, rows: Sequence[Row], value: Callable[[Row], float | None], floor: float = 0.0
) -> None:
    """Fastest first; on a log scale where the longest would hide the others."""
    found = sorted((v, row.way, row) for row in rows if (v := value(row)) is not None)
    values = [each for each, _, _ in found]
    axes.barh(range(len(found)), values, color=[_colour(row) for *_, row in found], height=0.74)
    if values[-1] > LOG_FROM * values[0] > 0:
        axes.set_xscale("log")
        axes.set_xlim(0.5 * min(values[0], floor or values[0]), 8 * values[-1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    else:
        axes.set_xlim(0, 1.45 * values[-1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    if floor:
        axes.axvline(floor, color=RED, linestyle="--", linewidth=1.2)
    for index, (each, _, row) in enumerate(found):
        ratio = "" if row.own or not values[0] else f"  ({_ratio(row, value, rows)})"
        axes.annotate(f"{_short(each)}{ratio}", (each, index), (4, 0), va="center", fontsize=8,
                      color=DARK, textcoords="offset points", bbox=BEHIND)  # fmt: skip
    axes.set_yticks(range(len(found)), [way for _, way, _ in found])
    axes.invert_yaxis()
    _tidy(axes)
    for label, (*_, row) in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color(BLUE if row.own else DARK)
        label.set_fontweight("bold" if row.own else "normal")


def _ratio(row: Row, value: Callable[[Row], float | None], rows: Sequence[Row]) -> str:
    ratio = (value(row) or 0.0) / (value(rows[0]) or 1.0)
    return f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.2g}x"


def _short(number: float) -> str:
    if number >= 1e4:
        return f"{number / 1e3:,.0f}k"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _colour(row: Row) -> str:
    return BLUE if row.own else GREY


# --- lines: against size, against density ---------------------------------------------------------

LINES = {  # peers drawn as lines, and how
    "torch._foreach_add_": ("--", "s"),
    "double argsort": ("-", "s"),
    "torch.kthvalue": ("--", "^"),
    "numpy.partition": (":", "D"),
    "grad *= mask (int64) + AdamW(for-loop)": ("-", "s"),
    "grad *= mask (bool) + AdamW(fused)": ("--", "^"),
    "AdamW(fused), no mask": (":", "D"),
    "dense state": ("-", "s"),
}


def size(records: Sequence[Record]) -> Figure | None:
    """Log-log, from what fits a cache to what hardly fits the machine."""
    chosen = [record for record in records if record.claim == "scaling" and not record.size.threads]
    return _panels(chosen, _against_size, "ms against number of weights, fp32, density 0.5")


def _against_size(axes: Axes, records: Sequence[Record]) -> None:
    _lines(axes, sorted(records, key=lambda r: r.size.weights), lambda r: r.size.weights, _ms)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    axes.set_xlabel("weights", fontsize=8)


def density(records: Sequence[Record]) -> Figure | None:
    """What compact state saves: time, and beside it memory."""
    chosen = [record for record in records if record.claim == "compact_state"]
    if not chosen:
        return None
    chosen.sort(key=lambda record: record.size.density or 0.0)
    figure = Figure(figsize=(9.2, 4))
    for index, (title, value) in enumerate([("ms", _ms), ("moments and masks, MB", _megabytes)]):
        axes = figure.add_subplot(1, 2, index + 1)
        _lines(axes, chosen, lambda r: r.size.density or 0.0, value)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("density of the mask", fontsize=8)
        _finish(axes, title)
    _title(figure, f"Compact state, AdamW on {chosen[0].size.weights / 1e6:.1f} M weights")
    return figure


def _lines(
    axes: Axes,
    records: Sequence[Record],
    place: Callable[[Record], float],
    value: Callable[[Row], float | None],
) -> None:
    """One line per way, over ``place(record)``; ours on top, the floor where times are drawn."""
    for way, (line, marker) in LINES.items():
        points = _points(records, way, place, value)
        if points:
            axes.plot(*zip(*points, strict=True), line, marker=marker, color=GREY, label=way,
                      markersize=4)  # fmt: skip
    floors = [(place(r), r.ours.floor * 1e3) for r in records if r.ours.floor and value is _ms]
    if floors:
        axes.plot(*zip(*floors, strict=True), "--", color=RED, linewidth=1.2, label=FLOOR)
    ours = _points(records, OURS, place, value)
    axes.plot(*zip(*ours, strict=True), "o-", color=BLUE, linewidth=2, label=OURS)


def _points(
    records: Sequence[Record],
    way: str,
    place: Callable[[Record], float],
    value: Callable[[Row], float | None],
) -> list[tuple[float, float]]:
    rows = [(place(r), value(row)) for r in records for row in r.rows if row.way == way]
    return [(where, found) for where, found in rows if found is not None]


def _seconds(record: Record, way: str) -> float | None:
    return next((row.seconds for row in record.rows if row.way == way), None)


def _panels(
    records: Sequence[Record], draw: Callable[[Axes, Sequence[Record]], None], title: str
) -> Figure | None:
    """One panel per case."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.case, []).append(record)
    if not groups:
        return None
    figure = Figure(figsize=(4.6 * len(groups), 4))
    for index, (case, members) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), index + 1)
        draw(axes, members)
        _finish(axes, case)
    figure.subplots_adjust(wspace=0.25)
    _title(figure, title)
    return figure


def _finish(axes: Axes, title: str) -> None:
    """The legend below, in the order of drawing from the top."""
    axes.set_title(title, fontsize=10, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=7.5, frameon=False,
                loc="upper center", bbox_to_anchor=(0.5, -0.14))  # fmt: skip
    _tidy(axes)


# --- threads --------------------------------------------------------------------------------------


def threads(records: Sequence[Record]) -> Figure | None:
    """Ours and some peers with one thread and with more."""
    chosen = [record for record in records if record.claim == "scaling" and record.size.threads]
    return _panels(
        chosen, _by_threads, "ms by threads, a DDPM UNet's 35.7 M weights, fp32, density 0.5"
    )


def _by_threads(axes: Axes, records: Sequence[Record]) -> None:
    records = sorted(records, key=lambda record: record.size.threads or 0)
    ways = [OURS, *(way for way in LINES if _seconds(records[0], way) is not None)]
    times = {way: [(_seconds(record, way) or 0.0) * 1e3 for record in records] for way in ways}
    width = 0.8 / len(ways)
    for index, way in enumerate(ways):
        places = [place + (index - (len(ways) - 1) / 2) * width for place in range(len(records))]
        shade, hatch = (BLUE, "") if way == OURS else (GREY, HATCHES[index - 1])
        bars = axes.bar(places, times[way], width * 0.92, color=shade, hatch=hatch, label=way,
                        edgecolor="white", linewidth=0)  # fmt: skip
        axes.bar_label(bars, [_short(time) for time in times[way]], fontsize=6.5, color=DARK)
    found = [time for each in times.values() for time in each]
    if max(found) > LOG_FROM * min(found) > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.4 * min(found))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    names = [f"{count} thread{'s' * (count != 1)}" for r in records if (count := r.size.threads)]
    axes.set_xticks(range(len(records)), names)


# --- per-sample saliency --------------------------------------------------------------------------


def per_sample(records: Sequence[Record]) -> Figure | None:
    """Time, and below it memory, of every workload."""
    chosen = [record for record in records if record.claim == "per_sample"]
    if not chosen:
        return None
    figure = Figure(figsize=(4.8 * len(chosen), 4.2))
    for index, record in enumerate(chosen):
        upper = figure.add_subplot(2, len(chosen), index + 1)
        _bars(upper, record.rows, _ms)
        upper.set_title(f"{record.size.name}: ms", fontsize=10, loc="left")
        lower = figure.add_subplot(2, len(chosen), len(chosen) + index + 1)
        _bars(lower, record.rows, _megabytes)
        lower.set_title(f"{record.size.name}: extra memory, MB", fontsize=10, loc="left")
    figure.subplots_adjust(wspace=0.75, hspace=0.5)
    _title(figure, "Per-sample saliency of one batch; x: how many times what salun-fast takes")
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=11, y=1.0)


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.minorticks_off()


PICTURES: dict[str, Callable[[Sequence[Record]], Figure | None]] = {
    "ops": ops,
    "size": size,
    "density": density,
    "per_sample": per_sample,
    "threads": threads,
}
