"""``doctor``: what is installed and what is active."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from salun_fast.cli import show

if TYPE_CHECKING:
    from salun_fast._load import LoadStatus
    from salun_fast.gpu import Gpu

OPTIONAL = (
    "scikit-learn", "torchvision", "torchmetrics", "omegaconf", "jinja2", "matplotlib",
    "diffusers", "transformers", "accelerate", "peft",
)  # fmt: skip
_CUDA_FACTS = "cuda_"  # how the build facts of the CUDA library begin


def doctor() -> None:
    """Show versions, whether the native kernels are active (or why not), GPUs, and the machine."""
    from salun_fast import _load, gpu, machine

    status, gpus = _load.status(), gpu.usable()
    kernels: dict[str, object] = {
        "native kernels": "active" if status.native else f"not active: {status.reason}",
        "library": status.library or "none",
        "instruction set": status.isa or "none",
        "available here": ", ".join(status.available_isas) or "none",
        _load.NATIVE_VARIABLE: os.environ.get(_load.NATIVE_VARIABLE, "not set"),
        _load.ISA_VARIABLE: os.environ.get(_load.ISA_VARIABLE, "not set"),
        **{
            f"built with {key}": value
            for key, value in status.build.items()
            if not key.startswith(_CUDA_FACTS)
        },
    }
    packages = {name: machine.installed_version(name) or "not installed" for name in OPTIONAL}
    show.facts("Versions and machine", machine.facts())
    show.facts("Kernels", kernels)
    show.facts("CUDA", _cuda(status, gpus))
    show.facts("Optional packages", packages)
    if not status.native:
        show.advice(
            "Everything works on the plain-torch reference, more slowly. To build the kernels: "
            f"{_load.REINSTALL} with a C++ compiler at hand, and {_load.NATIVE_VARIABLE} unset."
        )
    if gpus and not status.cuda.loaded and not status.switched_off:
        show.advice(
            "A GPU is here and CUDA tensors are refused. To build the CUDA kernels: "
            f"{_load.CUDA_VARIABLE}=on {_load.REINSTALL} with a CUDA toolkit on PATH and a CUDA "
            f"build of torch; or set {_load.NATIVE_VARIABLE}=0 for the plain-torch reference."
        )


def _cuda(status: LoadStatus, gpus: list[Gpu]) -> dict[str, object]:
    """The CUDA library, what it was built for, and each GPU with the verdict on it."""
    import torch

    from salun_fast import gpu

    cuda, driver = status.cuda, gpu.driver()
    return {
        "CUDA kernels": "loaded" if cuda.loaded else f"not loaded: {cuda.reason}",
        "CUDA library": cuda.library or "none",
        "built with toolkit": status.build.get("cuda_toolkit") or "none",
        "built for": status.build.get("cuda_architectures") or "none",
        "torch's CUDA": torch.version.cuda or "none (CPU build)",
        "driver": f"serves CUDA {driver[0]}.{driver[1]}{_too_old(status, driver)}"
        if driver
        else "none found",
        **({f"GPU {g.index}": _verdict(g, status) for g in gpus} or {"GPU": "none usable"}),
    }


def _too_old(status: LoadStatus, driver: tuple[int, int]) -> str:
    """Within one major version every driver serves every toolkit; below it none does."""
    toolkit = str(status.build.get("cuda_toolkit") or "")
    major = toolkit.partition(".")[0]
    if major.isdigit() and int(major) > driver[0]:
        return f": too old for kernels built with {toolkit}, update the driver"
    return ""


def _verdict(found: Gpu, status: LoadStatus) -> str:
    """Name and capability, whether the build covers it, and whether a masked step ran on it."""
    import torch

    from salun_fast import gpu

    major, minor = found.capability
    named = f"{found.name}, compute capability {major}.{minor}"
    if not (status.cuda.loaded or status.switched_off):
        return f"{named}; the CUDA kernels are not loaded"
    architectures = str(status.build.get("cuda_architectures") or "")
    covered = gpu.coverage(architectures, found.capability)
    code = "the plain-torch reference" if status.switched_off else covered
    failure = gpu.trial(torch.device("cuda", found.index))
    trial = "a masked step ran" if not failure else f"a masked step failed: {failure}"
    return f"{named}; {code or f'not covered by {architectures}'}; {trial}"
