"""Which compiled libraries are loaded, and what CUDA tensors meet where theirs is not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from salun_fast import _load, ops

BUILT = {"cuda_toolkit": "13.0"}


def test_every_op_has_a_cuda_kernel_wherever_torch_is_a_cuda_build():
    status = _load.status()
    if torch.version.cuda is None:
        assert status.cuda.reason == f"this torch {torch.__version__} is a CPU build"
    elif not status.build.get("cuda_toolkit"):
        assert "salun-fast was built without CUDA" in status.cuda.reason
    else:
        assert status.cuda.loaded, status.cuda.reason
    for name in ops.TABLE:
        kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"salun_fast::{name}", "CUDA")
        assert kernel == status.cuda.loaded, name
    if not status.cuda.loaded:
        pytest.skip(status.cuda.reason)


@pytest.mark.parametrize(
    ("cuda", "hip", "build", "why"),
    [
        (None, None, BUILT, f"this torch {torch.__version__} is a CPU build"),
        (None, "6.4", BUILT, f"this torch {torch.__version__} is a ROCm build"),
        ("13.0", None, {}, "built without CUDA (no working nvcc, or SALUN_FAST_CUDA=off)"),
        ("13.0", None, {"cuda_toolkit": ""}, "built without CUDA"),
        ("13.0", None, BUILT, "libsalun_fast_cuda.so is missing from the installation"),
    ],
)
def test_a_library_that_cannot_serve_is_not_loaded_and_says_why(
    monkeypatch, tmp_path, cuda, hip, build, why
):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    status = _load.load_cuda(tmp_path / "libsalun_fast_cuda.so", build)
    assert not status.loaded
    assert why in status.reason


def test_a_library_that_fails_to_load_is_named_with_the_loader_s_words(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    library = tmp_path / "libsalun_fast_cuda.so"
    library.write_bytes(b"no library")
    status = _load.load_cuda(library, BUILT)
    assert not status.loaded
    assert status.library == str(library)
    assert "libsalun_fast_cuda.so" in status.reason


def _reference_on_cuda(monkeypatch: Any, status: _load.LoadStatus) -> Any:
    """What the registered fallback of an op does with a CUDA tensor, GPU or not."""
    monkeypatch.setattr(_load, "status", lambda: status)
    _load.announce_reference.cache_clear()
    with FakeTensorMode():
        tensor = torch.empty(3, device="cuda")
    return ops._announced("select", lambda tensors, k: ("the reference ran", k))([tensor], 2)


@pytest.mark.parametrize(
    ("cuda", "why"),
    [
        (_load.CudaStatus(False, "salun-fast was built without CUDA"), "was built without CUDA"),
        (_load.CudaStatus(False, "libtorch_cuda.so: no such file", "x.so"), "no such file"),
        (_load.CudaStatus(True, "", "x.so"), "the loaded CUDA library has no kernel of this op"),
    ],
)
def test_cuda_tensors_without_a_kernel_give_one_clear_error(monkeypatch, cuda, why):
    with pytest.raises(RuntimeError, match=r"salun_fast::select got CUDA tensors") as raised:
        _reference_on_cuda(monkeypatch, _load.LoadStatus(native=True, cuda=cuda))
    for part in (why, "SALUN_FAST_CUDA=on pip install", "SALUN_FAST_NATIVE=0", "doctor"):
        assert part in str(raised.value)


def test_the_reference_runs_on_cuda_where_the_user_asked_for_it_and_says_so_once(monkeypatch):
    off = "SALUN_FAST_NATIVE=0 is set"
    status = _load.LoadStatus(False, off, cuda=_load.CudaStatus(False, off), switched_off=True)
    with pytest.warns(_load.ReferenceFallbackWarning, match="'cuda': SALUN_FAST_NATIVE=0 is set"):
        result = _reference_on_cuda(monkeypatch, status)
    assert result == ("the reference ran", 2)
    _load.admit_reference("select", "cuda")  # a second warning would be an error here


def test_other_devices_take_the_reference_with_one_warning(monkeypatch):
    _load.announce_reference.cache_clear()
    with pytest.warns(_load.ReferenceFallbackWarning, match="no kernel for 'mps' is built in"):
        _load.admit_reference("select", "mps")
    _load.admit_reference("select", "mps")


SNIPPET = """
import torch
from salun_fast import _load, ops
status = _load.status()
print(status.native, status.cuda.loaded, status.switched_off, status.cuda.reason)
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(any(has(f"salun_fast::{name}", key) for name in ops.TABLE for key in ("CPU", "CUDA")))
"""


def test_the_variable_switches_both_libraries_off():
    done = subprocess.run(
        [sys.executable, "-c", SNIPPET],
        env={**os.environ, "SALUN_FAST_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines == ["False False True SALUN_FAST_NATIVE=0 is set", "False"]
