"""The compiled library needs nothing of torch but its stable ABI, as of the oldest torch named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from salun_fast import _load

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_the_library_loads_in_every_torch_from_2_10_on():
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit comes with the dev extra")
    status = _load.status()
    if not status.native or status.library is None:
        pytest.skip(f"no compiled library: {status.reason}")
    command = [sys.executable, "-m", "torch_abi_audit.cli", "--check", "torch", "--json"]
    done = subprocess.run(
        [*command, status.library], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)["bundled_libs"][0]["torch"]
    assert verdict["uses_torch"]
    assert verdict["stable"], verdict["unstable_symbols"]
    assert verdict["unknown_shim_symbols"] == []
    assert verdict["min_torch_version"] == "2.10.0"
    assert status.build["torch_abi_target"] == "2.10"
    assert _named_in_pyproject() == {"2.10"}


def _named_in_pyproject() -> set[str]:
    return set(re.findall(r'"torch>=([\d.]+)"', PYPROJECT.read_text(encoding="utf-8")))
