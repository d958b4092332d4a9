"""``doctor``: what is installed and what is active."""

from __future__ import annotations

import os

from salun_fast.cli import show

OPTIONAL = (
    "scikit-learn", "torchvision", "torchmetrics", "omegaconf", "jinja2", "matplotlib",
    "diffusers",
)  # fmt: skip


def doctor() -> None:
    """Show versions, whether the native kernels are active (or why not), and the machine."""
    import torch

    from salun_fast import _load, machine

    status = _load.status()
    kernels: dict[str, object] = {
        "native kernels": "active" if status.native else f"not active: {status.reason}",
        "library": status.library or "none",
        "instruction set": status.isa or "none",
        "available here": ", ".join(status.available_isas) or "none",
        _load.NATIVE_VARIABLE: os.environ.get(_load.NATIVE_VARIABLE, "not set"),
        _load.ISA_VARIABLE: os.environ.get(_load.ISA_VARIABLE, "not set"),
        **{f"built with {key}": value for key, value in status.build.items()},
    }
    device = {
        "torch's CUDA": torch.version.cuda or "none (CPU build)",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none usable",
    }
    packages = {name: machine.installed_version(name) or "not installed" for name in OPTIONAL}
    show.facts("Versions and machine", {**machine.facts(), **device})
    show.facts("Kernels", kernels)
    show.facts("Optional packages", packages)
    if not status.native:
        show.advice(
            "Everything works on the plain-torch reference, more slowly. To build the kernels: "
            "pip install --no-cache-dir --force-reinstall --no-deps salun-fast with a C++ compiler "
            f"at hand, and {_load.NATIVE_VARIABLE} unset."
        )
