"""The facts beside every measured number name what it was measured on."""

from __future__ import annotations

import pytest
import torch

from salun_fast import _load, machine

CPU = {"native": True, "isa": "avx2", "build": {"cuda_toolkit": "13.0"}}
LOADED = _load.CudaStatus(True)


@pytest.mark.parametrize(
    ("device", "status", "kernels"),
    [
        ("cpu", _load.LoadStatus(**CPU), "native, avx2"),
        ("cpu", _load.LoadStatus(native=False), "plain-torch reference"),
        ("cuda:1", _load.LoadStatus(**CPU, cuda=LOADED), "native, CUDA 13.0"),
        ("cuda:1", _load.LoadStatus(**CPU), "plain-torch reference"),
        ("mps", _load.LoadStatus(**CPU, cuda=LOADED), "plain-torch reference"),
    ],
)
def test_facts_tell_the_kernels_of_the_device_and_the_gpu(monkeypatch, device, status, kernels):
    monkeypatch.setattr(_load, "status", lambda: status)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda found: f"GPU of {found}")
    facts = machine.facts(device)
    assert facts["kernels"] == kernels
    assert facts.get("gpu") == ("GPU of cuda:1" if device == "cuda:1" else None)
