"""The GPUs of this machine, and whether the compiled CUDA kernels run on them."""

from __future__ import annotations

import ctypes
import re
import warnings
from dataclasses import dataclass

import torch

from salun_fast import _load, ops

# As CMake's CUDA_ARCHITECTURES writes them: 90 (machine code and PTX), 90-real, 90-virtual, 90a.
_ARCHITECTURE = re.compile(r"(\d+)([af]?)(?:-(real|virtual))?")


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch can use; ``capability``: (9, 0) for an H100."""

    index: int
    name: str
    capability: tuple[int, int]


def usable() -> list[Gpu]:
    """The GPUs that torch sees; none under a CPU build of torch or without a driver."""
    if not torch.cuda.is_available():
        return []
    return [
        Gpu(i, torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i))
        for i in range(torch.cuda.device_count())
    ]


def known_device(name: str) -> torch.device:
    """Raises ValueError for a device that torch does not know or have here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known to torch") from error
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= usable:
        raise ValueError(
            f"device {name!r} is not available here: torch can use {usable} GPUs; use "
            f"device=cpu{', or a number below that' if usable else ', see salun-fast doctor'}"
        )
    return device


def driver() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver serves, as (13, 0); None without a driver."""
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def coverage(architectures: str, capability: tuple[int, int]) -> str:
    """How kernels built for ``architectures`` reach a GPU; empty where they do not.

    Machine code runs on its own major version from its minor version on, PTX on everything that
    is not older; code for 90a runs on 9.0 alone, for 100f within its major version.
    """
    number = 10 * capability[0] + capability[1]
    real, virtual = [], []
    for entry in re.split(r"[;, ]+", architectures):
        match = _ARCHITECTURE.fullmatch(entry)
        if match is None:
            continue
        built, suffix, kind = int(match[1]), match[2], match[3]
        family = built // 10 == capability[0] and built <= number
        fits = built == number if suffix == "a" else family
        if kind != "virtual" and fits:
            real.append(built)
        if kind != "real" and (fits if suffix else built <= number):
            virtual.append(built)
    if real:
        return f"machine code for sm_{max(real)}"
    return f"PTX of sm_{max(virtual)}, compiled by the driver at first use" if virtual else ""


def trial(device: torch.device) -> str:
    """Take one masked step there; returns what went wrong, or nothing."""
    try:
        weights, gradient = torch.ones(64, device=device), torch.ones(64, device=device)
        words = torch.tensor([0, -1], dtype=torch.int32, device=device)
        step = torch.zeros((), device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _load.ReferenceFallbackWarning)
            ops.masked_sgd_([weights], [gradient], [], [step], [words], lr=0.5)
        found = weights.tolist()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return "" if found == [1.0] * 32 + [0.5] * 32 else f"it gave {found[:1]} and {found[-1:]}"
