"""Where the benchmarks run, refused with the reason where they cannot."""

from __future__ import annotations

import torch

from salun_fast import _load, gpu


def why_not(device: torch.device) -> str:
    """What rules the device out: expected, found, remedy; empty where nothing does."""
    if device.type == "cpu":
        return ""
    if device.type != "cuda":
        return f"expected cpu, cuda or cuda:N, found {device}"
    cuda = _load.status().cuda
    if not cuda.loaded:
        return f"expected loaded CUDA kernels, found that {cuda.reason}; `salun-fast doctor` tells"
    found = gpu.usable()
    if not found:
        return (
            "expected a GPU that torch can use, found none: check the driver with nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )
    if device.index is not None and device.index >= len(found):
        names = ", ".join(f"cuda:{each.index} ({each.name})" for each in found)
        return f"expected one of {names}, found {device}"
    failed = gpu.trial(device)
    return f"a masked step fails there: {failed}; `salun-fast doctor` tells" if failed else ""
