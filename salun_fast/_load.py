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
_LIBRARY = "libsalun_fast_cpu.so"


class ReferenceFallbackWarning(RuntimeWarning):
    """The plain-torch reference runs where a compiled kernel was expected: exact, but slower."""


@dataclass(frozen=True)
class LoadStatus:
    """What is active in this process.

    ``native`` tells whether the compiled CPU ops run, ``reason`` why they do not (empty if they
    do), ``isa`` the instruction set of the hot loops, ``build`` the facts of the compiled module.
    """

    native: bool
    reason: str = ""
    library: str | None = None
    isa: str | None = None
    available_isas: list[str] = field(default_factory=list)
    build: dict[str, Any] = field(default_factory=dict)


@cache
def status() -> LoadStatus:
    """Load the compiled ops at the first call; the same answer ever after."""
    if os.environ.get(NATIVE_VARIABLE, "1") == "0":
        return LoadStatus(native=False, reason=f"{NATIVE_VARIABLE}=0 is set")
    try:
        facts = importlib.import_module("salun_fast._build")
    except ImportError as error:
        return LoadStatus(native=False, reason=f"the compiled module is missing ({error})")
    library = Path(str(facts.__file__)).with_name(_LIBRARY)
    isas = list(facts.available_isas())
    _check_requested_isa(isas)
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        return LoadStatus(False, str(error), str(library), None, isas, facts.build_facts())
    return LoadStatus(True, "", str(library), facts.active_isa(), isas, facts.build_facts())


def _check_requested_isa(available: list[str]) -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted and wanted not in available:
        raise RuntimeError(
            f"{ISA_VARIABLE}={wanted} cannot run here: expected one of {', '.join(available)}; "
            "unset it to use the best of them"
        )


@cache
def announce_reference(device_type: str) -> None:
    """Warn, once per device type, that the reference runs."""
    why = status().reason if device_type == "cpu" else f"no kernel for '{device_type}' is built in"
    warnings.warn(
        f"salun-fast runs its plain-torch reference on '{device_type}': {why}. Results are the "
        "same, speed and memory are not; `salun-fast doctor` tells what is active.",
        ReferenceFallbackWarning,
        stacklevel=3,
    )
