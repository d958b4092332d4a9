"""The losses over an unlearning run, as an SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from salun_fast.report.plot import BAR, HIGHLIGHT, INK, dress, house_figure, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[Mapping[str, Any]]

COLOURS = {**HIGHLIGHT, "rl": BAR, "ga": "#b98a2f"}
WORDS = {
    "forget": "forget term",
    "retain": "retain term",
    "denoise": "denoising loss",
}
STEEP = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic


def loss_plot(curves: Mapping[str, tuple[str, Curve]]) -> str | None:
    """One panel per term of the loss, one line per method.

    curves: internal name of a method to (name shown, step records). None where no curve has two
    points.
    """
    drawn = {method: found for method, found in curves.items() if len(found[1]) > 1}
    parts = list(dict.fromkeys(p for _, curve in drawn.values() for p in curve[0]["parts"]))
    if not parts:
        return None
    with house_figure(3.1) as figure:
        axes = figure.subplots(1, len(parts), squeeze=False)[0]
        for axis, part in zip(axes, parts, strict=True):
            _panel(axis, part, drawn)
        lines = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
        if len(drawn) > 1:
            figure.legend(
                handles=list(lines.values()), loc="outside lower center", ncols=6, frameon=False,
                labelcolor=INK,
            )  # fmt: skip
        return svg(figure, "Losses over the steps per method")


def _panel(axis: Axes, part: str, curves: Mapping[str, tuple[str, Curve]]) -> None:
    values: list[float] = []
    for method, (name, curve) in curves.items():
        points = [(r["step"], r["parts"][part]) for r in curve if part in r["parts"]]
        if points:
            steps, losses = zip(*points, strict=True)
            axis.plot(steps, losses, color=COLOURS.get(method, BAR), linewidth=1.4, label=name)
            values += losses
    if min(values) > 0 and max(values) / min(values) > STEEP:
        axis.set_yscale("log")
        axis.tick_params(which="minor", colors=INK, length=0, labelleft=False)
    axis.set_title(WORDS.get(part, part), color=INK, fontsize=11, loc="left")
    axis.set_xlabel("step", color=INK)
    dress(axis, grid="y")
