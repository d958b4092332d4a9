"""Installing where the kernels, or only those for CUDA, cannot be compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEP = """
import torch, salun_fast
linear = torch.nn.Linear(2, 1)
torch.nn.init.zeros_(linear.weight)  # so that 0 - lr * gradient is exact
optimizer = salun_fast.SalUnOptimizer(linear.named_parameters(), lr=0.5)
with optimizer.measure_saliency():
    linear(torch.ones(1, 2)).sum().backward()
optimizer.select(0.4)
linear(torch.ones(1, 2)).sum().backward()
optimizer.step()
print(linear.weight.tolist())
"""


def test_without_a_compiler_the_python_part_installs_and_works_with_one_warning(tmp_path):
    pytest.importorskip("scikit_build_core", reason="comes with the dev extra")
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("no source tree here")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unbuilt = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("salun_fast", "csrc", "cmake"):
        shutil.copytree(ROOT / name, source / name, ignore=unbuilt)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run(
        [*pip, "--wheel-dir", tmp_path, source],
        env={**os.environ, "CXX": "/bin/false"},
        capture_output=True,
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # -S keeps an editable install's import hook away; torch's folder is named instead.
    packages = os.pathsep.join([str(tmp_path / "site"), *(p for p in sys.path if "site-pack" in p)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", STEP],
        env={**os.environ, "PYTHONPATH": packages},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[[-0.5, 0.0]]"  # int(3 * 0.4) = 1 weight, the first of the ties
    assert done.stderr.count("ReferenceFallbackWarning") == 1
    assert "the compiled module is missing" in done.stderr


def test_an_nvcc_that_fails_on_our_sources_costs_the_cuda_ops_alone(tmp_path):
    """As one does whose host compiler is too new for it: it compiles CMake's trial, not ours."""
    nvcc, cmake = shutil.which("nvcc"), shutil.which("cmake", path=Path(sys.executable).parent)
    if nvcc is None or cmake is None or not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("needs nvcc, the dev extra's cmake and the source tree")
    fussy = tmp_path / "nvcc"
    fussy.write_text(
        f'#!/bin/sh\ncase "$*" in *csrc/cuda/*) echo no >&2; exit 2;; esac\nexec {nvcc} "$@"\n'
    )
    fussy.chmod(0o755)
    pybind11 = pytest.importorskip("pybind11", reason="comes with the dev extra")
    done = subprocess.run(
        [
            cmake,
            *("-S", ROOT, "-B", tmp_path / "build"),
            "-DSKBUILD_PROJECT_NAME=salun_fast",
            "-DSKBUILD_PROJECT_VERSION=0",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        env={**os.environ, "CUDACXX": str(fussy), "SALUN_FAST_CUDA": "auto"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"CUDA ops: left out ({fussy} does not compile the kernels: no" in done.stdout
