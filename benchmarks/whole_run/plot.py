"""The point at a glance: time by phase, memory and files of each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sd_scale.meter import Row
from benchmarks.whole_run.phases import PHASES, counted

COLOURS = {
    "saliency": "#8da0cb",
    "mask": "#e78ac3",
    "write": "#ffd92f",
    "read": "#a6d854",
    "unlearn": "#4c72b0",
    "others": "#d9b8d0",
}


def draw(ways: Mapping[str, Sequence[Row]], disk: Mapping[str, int], path: Path) -> None:
    """A row of bars per way; the nine other densities in the reference's time alone, which cannot
    do without them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, 3, figsize=(11, 0.55 * len(ways) + 1.6), width_ratios=(2.4, 1, 1), sharey=True
    )
    names = list(ways)[::-1]
    _times(panels[0], {name: ways[name] for name in names})
    _bars(panels[1], {n: max(r.peak for r in ways[n]) / 1e9 for n in names}, "peak memory, GB")
    _bars(panels[2], {n: disk[n] / 1e6 for n in names}, "mask files, MB (log)")
    panels[2].set_xscale("log")
    panels[2].set_xlim(right=panels[2].get_xlim()[1] * 4)
    figure.tight_layout(rect=(0, 0, 1, 0.84))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _times(panel: Any, ways: Mapping[str, Sequence[Row]]) -> None:
    for place, (name, rows) in enumerate(ways.items()):
        begin = 0.0
        for row in counted(name, rows):
            panel.barh(place, row.seconds, left=begin, color=COLOURS[row.phase])
            begin += row.seconds
        panel.text(begin, place, f" {begin:.3g} s", va="center")
    panel.set_yticks(range(len(ways)), ways)
    panel.set_xlabel("seconds")
    panel.margins(x=0.12)
    shown = [panel.barh(0, 0, color=colour) for colour in COLOURS.values()]
    words = [PHASES[phase] for phase in COLOURS]
    panel.figure.legend(shown, words, ncols=3, loc="upper center", frameon=False, fontsize=9)


def _bars(panel: Any, sizes: Mapping[str, float], title: str) -> None:
    bars = panel.barh(range(len(sizes)), list(sizes.values()), color="#b3b3b3")
    panel.bar_label(bars, fmt="{:.3g}", padding=3)
    panel.set_xlabel(title)
    panel.margins(x=0.25)
