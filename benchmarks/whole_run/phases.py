"""The phases of a run, and a meter for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sd_scale.cost import Bytes
from benchmarks.sd_scale.meter import Meter, Row, Scale

PHASES = {
    "saliency": "saliency",
    "mask": "mask selected",
    "write": "mask written",
    "read": "mask read",
    "unlearn": "unlearning",
    "others": "nine other densities: selected, written",
}
REFERENCE = "reference"
DENSITIES = tuple(tenth / 10 for tenth in range(1, 11))  # the reference writes them all


def meter(way: str) -> Meter:
    """Of all the weights, whose bytes nobody counted beforehand."""
    return Meter(way, defaultdict(lambda: Bytes(0)), scale=Scale(1, 1))


def size_of(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in folder.iterdir())


def counted(way: str, rows: Sequence[Row]) -> list[Row]:
    """The phases that a run of this way cannot do without."""
    return [row for row in rows if row.phase != "others" or way == REFERENCE]
