"""`import salun_fast` brings in torch and little else."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "omegaconf", "jinja2", "matplotlib", "sklearn", "torchvision", "typer", "rich", "PIL",
    "diffusers", "transformers", "torch._dynamo",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "allowed"), [("salun_fast", ()), ("salun_fast.cli", ("typer", "rich"))]
)
def test_heavy_packages_are_imported_only_where_they_are_used(module, allowed):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    found = set(done.stdout.split())
    assert found.isdisjoint(set(HEAVY) - set(allowed))
