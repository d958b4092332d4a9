"""The generated pictures of a page: before | after | retrained, from the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from salun_fast.diffusion_records import YARDSTICKS, load_samples
from salun_fast.report.diffusion.source import DiffusionSource, Record
from salun_fast.report.grid import PIXEL_RATIO, Panel, grid
from salun_fast.report.words import METHOD_NAMES

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_WIDTH = 1050  # of a picture on the page, in its pixels
TITLES = {
    "original": "Before",
    "retrain": "Retrained",
    "random_mask": "After a random mask",
}
PREFERRED = ("salun", "rl", "random_mask", "ga")  # whose pictures stand for "after"


def lead_method(source: DiffusionSource, task: str) -> str | None:
    """The method whose pictures are shown first; None where nothing was unlearned."""
    return next((m for m in PREFERRED if source.of(task, m)), None)


def hero(source: DiffusionSource, task: str) -> Image | None:
    """Before | after SalUn | retrained, smallest seed; None where no samples are left."""
    lead = lead_method(source, task)
    return _picture(source, task, ["original", *([lead] if lead else []), "retrain"])


def others(source: DiffusionSource, task: str) -> Image | None:
    """After each of the other methods; None where there are none."""
    shown = (*YARDSTICKS, lead_method(source, task))
    return _picture(source, task, [m for m in source.methods(task) if m not in shown])


def animated(source: DiffusionSource, task: str) -> Record | None:
    """The run of the lead method whose animation is there."""
    lead = lead_method(source, task)
    runs = source.of(task, lead) if lead else []
    return next((r for r in runs if r["animation"] and Path(r["animation"]).is_file()), None)


def missing(source: DiffusionSource) -> list[str]:
    """Sample files that the records name and the folder no longer has."""
    named = dict.fromkeys(r["samples"] for r in source.runs if r["samples"])
    return [file for file in named if not Path(file).is_file()]


def _picture(source: DiffusionSource, task: str, methods: Sequence[str]) -> Image | None:
    runs = [r for m in methods if (r := source.first(task, m)) and _there(r)]
    if not runs:
        return None
    found = [(r, load_samples(r["samples"])) for r in runs]
    (first, drawn), *_ = found
    alike = [(r, i) for r, i in found if r["rows"] == first["rows"] and i.shape == drawn.shape]
    return _fitted(alike, first["rows"], first["forgotten"])


def _there(run: Record) -> bool:
    return run["samples"] is not None and Path(run["samples"]).is_file()


def _fitted(
    found: Sequence[tuple[Record, Tensor]], labels: Sequence[str], forgotten: Sequence[int]
) -> Image:
    """As many of the seeds as fit the page."""

    def drawn(columns: int) -> Image:
        panels = [
            Panel(_title(run), list(images[:, :columns]), _note(run)) for run, images in found
        ]
        return grid(panels, labels, forgotten=forgotten)

    count = found[0][1].shape[1]
    narrow, wide = (drawn(columns).width for columns in (1, min(2, count)))
    step = max(wide - narrow, 1)
    fits = 1 + max(MOST_WIDTH * PIXEL_RATIO - narrow, 0) // step
    return drawn(min(fits, count))


def _title(run: Record) -> str:
    return TITLES.get(run["method"], f"After {METHOD_NAMES[run['method']]}")


def _note(run: Record) -> str:
    metrics = run["metrics"] or {}
    ua = metrics.get("ua")
    return "" if ua is None else f"UA {ua:.2f} %"
