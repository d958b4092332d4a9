"""Facts about software and machine that belong beside every measured number."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from salun_fast import _load


def versions() -> dict[str, str]:
    """Versions of this package, torch and Python."""
    return {
        "salun-fast": installed_version("salun-fast") or "not installed",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def installed_version(distribution: str) -> str | None:
    """The version of an installed package; None where it is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def facts() -> dict[str, str | int | None]:
    """What a reader needs to judge a run time: versions, processor, threads, active kernels."""
    status = _load.status()
    return {
        **versions(),
        "platform": platform.platform(terse=True),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": f"native, {status.isa}" if status.native else "plain-torch reference",
    }


def processor() -> str:
    """The processor's name as the kernel reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
