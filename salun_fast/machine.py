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


def facts(device: torch.device | str = "cpu") -> dict[str, str | int | None]:
    """What a reader needs to judge a run time: versions, processor, threads, the GPU if that is
    where it ran, and the kernels that were active there."""
    device = torch.device(device)
    found: dict[str, str | int | None] = {
        **versions(),
        "platform": platform.platform(terse=True),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {"kernels": kernels(device)}


def kernels(device: torch.device) -> str:
    """Which implementation of the ops runs on ``device``."""
    status = _load.status()
    if device.type == "cpu" and status.native:
        return f"native, {status.isa}"
    if device.type == "cuda" and status.cuda.loaded:
        return f"native, CUDA {status.build['cuda_toolkit']}"
    return "plain-torch reference"


def processor() -> str:
    """The processor's name as the kernel reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
