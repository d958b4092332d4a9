"""Peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size
_MEBIBYTE = 1024.0 * 1024.0


class PeakMemory:
    """``with PeakMemory(device) as peak: ...`` then ``peak.megabytes`` (MiB).

    On CUDA the allocator's peak on that device. On the CPU the peak resident set of the whole
    process during the block on Linux, and since the process began where that cannot be reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes = 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_peak()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / _MEBIBYTE
        else:
            self.megabytes = _peak_resident()


def _reset_peak() -> None:
    # Not Linux, or not allowed: the peak then counts from the start of the process.
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)


def _peak_resident() -> float:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MEBIBYTE if sys.platform == "darwin" else peak / 1024.0
