"""How much memory a call takes on top of what is there before it."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.case import Call
from benchmarks.sd_scale.meter import give_back, resident, trim
from salun_fast.evaluation.resources import PeakMemory

_MEBIBYTE = 2**20
_SMALL = 1e8  # bytes that any machine has


def growth(call: Call, device: torch.device) -> float:
    """Bytes by which the peak during ``call`` exceeds what is held before it: of resident memory on
    a CPU, of what torch's allocator has handed out on a GPU."""
    before = _held(device)
    with PeakMemory(device) as peak:
        call()
    return max(0.0, peak.megabytes * _MEBIBYTE - before)


def _held(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    trim()
    return resident()


def no_room(needed: float, device: torch.device) -> str:
    """Why so many bytes cannot be had; empty where they can."""
    if needed < _SMALL:
        return ""
    there = _free(device)
    if needed < 0.95 * there:
        return ""
    return f"needs {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free"


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    give_back()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    lines = meminfo.read_text().splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
