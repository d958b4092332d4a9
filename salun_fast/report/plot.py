"""The plot of gaps, as an SVG that takes its text colour from the page around it."""

from __future__ import annotations

import io
import re

from salun_fast._extras import need
from salun_fast.evaluation.gap import METRICS
from salun_fast.experiment import Row
from salun_fast.report.words import METHOD_NAMES, METRIC_NAMES

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
    matplotlib = need("matplotlib", "the report's plot")
    figures = need("matplotlib.figure", "the report's plot")
    style = {"svg.fonttype": "none", "svg.hashsalt": "salun-fast", "font.size": 10}
    with matplotlib.rc_context(style):
        most = max(len(rows) for rows in panels.values())
        figure = figures.Figure(figsize=(10.5, 1.1 + 0.42 * most), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, rows) in zip(axes, panels.items(), strict=True):
            _panel(axis, title, rows)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK
        )
        return _svg(figure)


def _panel(axis: object, title: str, rows: list[Row]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
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
    axis.tick_params(colors=INK, length=3)
    axis.grid(axis="x", color=INK, alpha=0.12)
    axis.set_axisbelow(True)
    axis.patch.set_alpha(0)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _svg(figure: object) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})  # type: ignore[attr-defined]
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: (\d+\.?\d*)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace("<svg ", '<svg role="img" aria-label="Gaps to Retrain per method" ', 1)
