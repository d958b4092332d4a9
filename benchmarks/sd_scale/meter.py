"""Time and peak memory of one phase after the other, in the process that runs them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from rich.console import Console

from benchmarks.sd_scale.cost import Bytes
from salun_fast.evaluation.resources import PeakMemory

T = TypeVar("T")
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Row:
    """seconds; peak: of the process's resident memory, in bytes; counted: :class:`Bytes`.held;
    floor: seconds that moving the bytes takes, where that decides. measured_at: on how many
    weights, where not on all; time and bytes are then scaled to all. file: bytes written."""

    phase: str
    seconds: float
    peak: float
    counted: int
    floor: float | None = None
    measured_at: int | None = None
    file: float | None = None


class Measured(NamedTuple):
    """rows in the order of the work; libraries: bytes resident before any of it."""

    rows: list[Row]
    libraries: float


@dataclass(frozen=True)
class Scale:
    """From a part of the weights to all of them."""

    part: int
    whole: int

    @property
    def linear(self) -> float:
        return self.whole / self.part

    @property
    def sorting(self) -> float:
        """n log n."""
        return self.linear * math.log(self.whole) / math.log(self.part)


class Meter:
    """``meter(phase, call)`` gives what ``call()`` gives and notes a row.

    ``bandwidth``: bytes per second, for floors. ``scale``: what share of the work the calls do.
    """

    def __init__(
        self, way: str, counted: dict[str, Bytes], *, bandwidth: float = math.inf, scale: Scale
    ) -> None:
        self._rows: list[Row] = []
        self._way, self._counted, self._bandwidth, self._scale = way, counted, bandwidth, scale
        self._libraries = resident()

    def __call__(
        self, phase: str, call: Callable[[], T], *, rounds: int = 1, sorts: bool = False
    ) -> T:
        """The median of ``rounds`` calls."""
        give_back()
        times = []
        with PeakMemory(torch.device("cpu")) as peak:
            for _ in range(rounds):
                result = None  # frees the last one's
                started = time.perf_counter()
                result = call()
                times.append(time.perf_counter() - started)
        factor = self._scale.sorting if sorts else self._scale.linear
        self._note(phase, statistics.median(times) * factor, peak.megabytes * _MEBIBYTE)
        return cast(T, result)

    def wrote(self, path: Path) -> None:
        """Note the size of the file that the last phase wrote."""
        size = path.stat().st_size * self._scale.linear
        self._rows[-1] = replace(self._rows[-1], file=size)

    def measured(self) -> Measured:
        return Measured(self._rows, self._libraries)

    def _note(self, phase: str, seconds: float, peak: float) -> None:
        bytes_, scale = self._counted[phase], self._scale
        floor = bytes_.moved / self._bandwidth if bytes_.moved else None
        row = Row(
            phase,
            seconds,
            self._libraries + (peak - self._libraries) * scale.linear,
            bytes_.held,
            floor,
            scale.part if scale.part < scale.whole else None,
        )
        self._rows.append(row)
        scaled = f" (measured on {scale.part:,} weights, scaled)" if row.measured_at else ""
        Console().print(
            f"{self._way}: {phase}: {row.seconds:,.2f} s, peak {row.peak / 1e9:.2f} GB{scaled}",
            soft_wrap=True,
        )


def give_back() -> None:
    """Free memory to the system, which would else count into the next phase's peak."""
    gc.collect()
    trim()


def trim() -> None:
    """Only what the C library keeps: collecting Python's garbage takes a tenth of a second."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> float:
    """Bytes of this process in memory now; 0 where the kernel does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmRSS:"))
