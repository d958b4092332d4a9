"""Find and load the compiled ops, and remember why not (for the one warning and for doctor)."""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

NATIVE_VARIABLE = "SALUN_FAST_NATIVE"
ISA_VARIABLE = "SALUN_FAST_ISA"
CUDA_VARIABLE = "SALUN_FAST_CUDA"  # read at build time only
REINSTALL = "pip install --no-cache-dir --force-reinstall --no-deps salun-fast"
_CPU_LIBRARY = "libsalun_fast_cpu.so"
_CUDA_LIBRARY = "libsalun_fast_cuda.so"


class ReferenceFallbackWarning(RuntimeWarning):
    """The plain-torch reference runs where a compiled kernel was expected: exact, but slower."""


@dataclass(frozen=True)
class CudaStatus:
    """Whether the compiled CUDA ops are loaded, and if not, why.

    ``library`` is the file that was found, loaded or not. Loading needs neither a GPU nor a driver.
    """

    loaded: bool
    reason: str = ""
    library: str | None = None


@dataclass(frozen=True)
class LoadStatus:
    """What is active in this process.

    ``native`` tells whether the compiled CPU ops run, ``reason`` why they do not (empty if they
    do), ``isa`` the instruction set of the hot loops, ``build`` the facts of the compiled module,
    ``cuda`` the same of the CUDA ops, ``switched_off`` whether the user asked for the reference.
    """

    native: bool
    reason: str = ""
    library: str | None = None
    isa: str | None = None
    available_isas: list[str] = field(default_factory=list)
    build: dict[str, Any] = field(default_factory=dict)
    cuda: CudaStatus = CudaStatus(loaded=False)
    switched_off: bool = False


@cache
def status() -> LoadStatus:
    """Load the compiled ops at the first call; the same answer ever after."""
    if os.environ.get(NATIVE_VARIABLE, "1") == "0":
        off = f"{NATIVE_VARIABLE}=0 is set"
        return LoadStatus(False, off, cuda=CudaStatus(False, off), switched_off=True)
    try:
        facts = importlib.import_module("salun_fast._build")
    except ImportError as error:
        missing = f"the compiled module is missing ({error})"
        return LoadStatus(False, missing, cuda=CudaStatus(False, missing))
    isas = list(facts.available_isas())
    _check_requested_isa(isas)
    build = facts.build_facts()
    library = Path(str(facts.__file__)).with_name(_CPU_LIBRARY)
    failure = _load(library)
    return LoadStatus(
        native=not failure,
        reason=failure,
        library=str(library),
        isa=None if failure else facts.active_isa(),
        available_isas=isas,
        build=build,
        cuda=load_cuda(library.with_name(_CUDA_LIBRARY), build),
    )


def has_kernels(device_type: str) -> bool:
    """Whether ops on this kind of device run compiled."""
    active = status()
    return active.native if device_type == "cpu" else device_type == "cuda" and active.cuda.loaded


def load_cuda(library: Path, build: dict[str, Any]) -> CudaStatus:
    """Load the CUDA ops where this torch has the symbols that they need."""
    found = str(library) if library.is_file() else None
    reason = _why_no_cuda(found, build) or _load(library)
    return CudaStatus(loaded=not reason, reason=reason, library=found)


def _why_no_cuda(found: str | None, build: dict[str, Any]) -> str:
    """What rules the CUDA library out before any attempt to load it; empty if nothing does."""
    if torch.version.hip is not None:
        return f"this torch {torch.__version__} is a ROCm build, the kernels are CUDA's"
    if torch.version.cuda is None:
        return f"this torch {torch.__version__} is a CPU build"
    if not build.get("cuda_toolkit"):
        return f"salun-fast was built without CUDA (no working nvcc, or {CUDA_VARIABLE}=off)"
    if found is None:
        return f"{_CUDA_LIBRARY} is missing from the installation"
    return ""


def _load(library: Path) -> str:
    """Load a library of ops; returns why it cannot be loaded, or nothing."""
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        return str(error)
    return ""


def _check_requested_isa(available: list[str]) -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted and wanted not in available:
        raise RuntimeError(
            f"{ISA_VARIABLE}={wanted} cannot run here: expected one of {', '.join(available)}; "
            "unset it to use the best of them"
        )


def admit_reference(op: str, device_type: str) -> None:
    """Announce the reference where it may run; on CUDA that is only where the user asked for it.

    A GPU is there to be fast: a run that silently takes the reference's launches and memory is
    worse than one that stops and says how to get the kernels.
    """
    if device_type == "cuda" and not status().switched_off:
        why = status().cuda.reason or "the loaded CUDA library has no kernel of this op"
        raise RuntimeError(
            f"salun_fast::{op} got CUDA tensors, but its CUDA kernel is not available: {why}. "
            f"Put a CUDA toolkit on PATH and reinstall under a CUDA build of torch: "
            f"{CUDA_VARIABLE}=on {REINSTALL}; or set {NATIVE_VARIABLE}=0 to run the plain-torch "
            "reference on the GPU. `salun-fast doctor` tells what is active."
        )
    announce_reference(device_type)


@cache
def announce_reference(device_type: str) -> None:
    """Warn, once per device type, that the reference runs."""
    expected = device_type == "cpu" or status().switched_off
    why = status().reason if expected else f"no kernel for '{device_type}' is built in"
    warnings.warn(
        f"salun-fast runs its plain-torch reference on '{device_type}': {why}. Results are the "
        "same, speed and memory are not; `salun-fast doctor` tells what is active.",
        ReferenceFallbackWarning,
        stacklevel=4,
    )
