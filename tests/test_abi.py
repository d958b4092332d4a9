"""The compiled libraries need nothing of torch but its stable ABI, as of the oldest torch named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from salun_fast import _load

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_library_loads_in_every_torch_from_2_10_on(backend):
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit comes with the dev extra")
    verdict = _verdict(_library(backend))
    assert verdict["uses_torch"]
    assert verdict["stable"], verdict["unstable_symbols"]
    assert verdict["unknown_shim_symbols"] == []
    assert verdict["min_torch_version"] == "2.10.0"
    assert _load.status().build["torch_abi_target"] == "2.10"
    assert _named_in_pyproject() == {"2.10"}


def _library(backend: str) -> Path:
    status = _load.status()
    found = status.library if backend == "cpu" else status.cuda.library
    if found is None or not Path(found).is_file():
        pytest.skip(f"no compiled library: {status.reason or status.cuda.reason}")
    return Path(found)


def _verdict(library: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch_abi_audit.cli", "--check", "torch", "--json"]
    done = subprocess.run(
        [*command, str(library)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["bundled_libs"][0]["torch"]
    return found


def _named_in_pyproject() -> set[str]:
    return set(re.findall(r'"torch>=([\d.]+)"', PYPROJECT.read_text(encoding="utf-8")))
