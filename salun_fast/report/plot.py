"""The plot of gaps, as an SVG that takes its text colour from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from salun_fast._extras import need
from salun_fast.evaluation.gap import METRICS
from salun_fast.experiment import Row
from salun_fast.report.words import METHOD_NAMES, METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # replaced by currentColor, so that light and dark pages both work
BAR = "#4f7cac"
HIGHLIGHT = {"salun": "#d1495b", "random_mask": "#8d6a9f"}
MARKERS = {"ua": "o", "ra": "s", "ta": "^", "mia": "D"}


def gap_plot(tables: dict[str, list[Row]]) -> str | None:
    """One panel per task title: Avg. Gap as a bar with its spread, the four gaps as marks.

    None where no table has gaps.
    """
    panels = {
        title: [row for row in rows if row.gaps and row.method != "retrain"]
        for title, rows in tables.items()
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        return None
    most = max(len(rows) for rows in panels.values())
    with house_figure(1.1 + 0.42 * most) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, rows) in zip(axes, panels.items(), strict=True):
            _panel(axis, title, rows)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK
        )
        return svg(figure, "Gaps to Retrain per method")


@contextmanager
def house_figure(height: float) -> Iterator[Figure]:
    """An empty figure as wide as the page; height in inches. Draw and save it inside."""
    matplotlib = need("matplotlib", "the report's plot")
    figures = need("matplotlib.figure", "the report's plot")
    style = {"svg.fonttype": "none", "svg.hashsalt": "salun-fast", "font.size": 10}
    with matplotlib.rc_context(style):
        yield figures.Figure(figsize=(10.5, height), layout="constrained")


def dress(axis: Axes, *, grid: Literal["x", "y"]) -> None:
    """The house's look: thin ticks and grid lines, left and bottom edge only."""
    axis.tick_params(colors=INK, length=3)
    axis.grid(axis=grid, color=INK, alpha=0.12)
    axis.set_axisbelow(True)
    axis.patch.set_alpha(0)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _panel(axis: Axes, title: str, rows: list[Row]) -> None:
    places = list(range(len(rows)))[::-1]
    axis.barh(
        places,
        [row.average_gap for row in rows],
        xerr=[row.average_gap_std for row in rows],
        color=[HIGHLIGHT.get(row.method, BAR) for row in rows],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5},
        height=0.5,
        alpha=0.75,
        label="Avg. Gap ± std",
    )
    for metric in METRICS:
        axis.plot(
            [row.gaps[metric] for row in rows],
            places,
            MARKERS[metric],
            color=INK,
            markerfacecolor="none",
            markersize=5,
            clip_on=False,  # marks at 0 stay whole
            label=f"{METRIC_NAMES[metric]} gap",
        )
    axis.set_yticks(places, [METHOD_NAMES[row.method] for row in rows])
    axis.set_xlabel("percentage points from Retrain (0 is best)", color=INK)
    axis.set_title(title, color=INK, fontsize=11, loc="left")
    axis.set_xlim(left=0)
    dress(axis, grid="x")


def svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that takes colour, font and width from the page around it.

    label: what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font: (\d+\.?\d*)px [^;\"]*", r"font-size: \1px", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
