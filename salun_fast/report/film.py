"""The pictures of a run over its steps, as an animation of grids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from torch import Tensor

from salun_fast.report.animation import animation
from salun_fast.report.grid import Panel, grid


def film(
    path: str | os.PathLike[str],
    frames: Iterable[tuple[int, Tensor]],
    labels: Sequence[str],
    forgotten: Sequence[int],
) -> None:
    """Write ``path``, a GIF. frames: steps taken and the rows then, uint8 [rows, k, c, h, w]."""
    pictures = [
        grid([Panel(f"after {step} steps", list(rows))], labels, forgotten=forgotten)
        for step, rows in frames
    ]
    animation(pictures, path)
