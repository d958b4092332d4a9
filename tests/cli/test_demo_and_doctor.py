"""The demo end to end, much reduced, and the doctor."""

from __future__ import annotations

import pytest
import torch

from salun_fast import _load, gpu
from salun_fast.experiment import read_records
from tests.cli.conftest import fine

REDUCED = [
    "width=4", "seeds=[0]", "tasks=[class]", "train.epochs=1", "unlearn.epochs=1",
    "methods=[original,retrain,salun,random_mask]", "densities=[0.5]", "lrs.class.salun=[0.01]",
    "lrs.class.random_mask=[0.01]", "max_members=100", "threads=1",
]  # fmt: skip


def test_demo_compares_reports_and_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "demo"
    output = fine("demo", *REDUCED, "--out", folder)
    assert "One seed cannot tell SalUn from a random mask" in " ".join(output.split())
    html, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    assert "data:image/png" in html
    assert "| Random mask |" in table
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:-1]))
    fine("demo", *REDUCED, "--out", folder)
    assert len(read_records(folder)) == len(lines)
    assert "tuning_seed: 100" in (folder / "config.yaml").read_text()


def test_demo_runs_without_a_config_library_only_to_say_so(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", None)
    from tests.cli.conftest import call

    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert 'pip install "salun-fast[demo]"' in result.output


def test_doctor_tells_versions_kernels_and_variables(monkeypatch):
    monkeypatch.setenv(_load.ISA_VARIABLE, "baseline")
    output = fine("doctor")
    for word in ("torch", "python", "native kernels", "instruction set", "threads", "baseline"):
        assert word in output


def test_doctor_says_why_the_kernels_are_not_active(monkeypatch):
    missing = _load.LoadStatus(native=False, reason="SALUN_FAST_NATIVE=0 is set")
    monkeypatch.setattr(_load, "status", lambda: missing)
    output = fine("doctor")
    assert "not active: SALUN_FAST_NATIVE=0 is set" in output
    assert "Everything works" in output


def _told(monkeypatch, status, gpus=(), driver=None, trial=""):
    """What doctor says on a machine with these GPUs, in one line."""
    monkeypatch.setattr(_load, "status", lambda: status)
    monkeypatch.setattr(gpu, "usable", lambda: list(gpus))
    monkeypatch.setattr(gpu, "driver", lambda: driver)
    monkeypatch.setattr(gpu, "trial", lambda device: trial)
    return " ".join(fine("doctor").split())


H100 = gpu.Gpu(0, "NVIDIA H100", (9, 0))
T4 = gpu.Gpu(1, "Tesla T4", (7, 5))
BUILD = {"version": "1", "cuda_toolkit": "13.0", "cuda_architectures": "80-real 90"}
LOADED = _load.LoadStatus(
    native=True, build=BUILD, cuda=_load.CudaStatus(True, "", "libsalun_fast_cuda.so")
)


def test_doctor_judges_every_gpu(monkeypatch):
    told = _told(monkeypatch, LOADED, [H100, T4], driver=(13, 1))
    for words in (
        "CUDA kernels loaded",
        "built with toolkit 13.0",
        "built for 80-real 90",
        "driver serves CUDA 13.1",
        "GPU 0 NVIDIA H100, compute capability 9.0; machine code for sm_90; a masked step ran",
        "GPU 1 Tesla T4, compute capability 7.5; not covered by 80-real 90; a masked step ran",
    ):
        assert words in told
    assert "built with cuda_toolkit" not in told
    assert "too old" not in told


def test_doctor_says_what_a_masked_step_raised_and_that_the_driver_is_too_old(monkeypatch):
    told = _told(monkeypatch, LOADED, [H100], driver=(12, 8), trial="no kernel image")
    assert "serves CUDA 12.8: too old for kernels built with 13.0, update the driver" in told
    assert "a masked step failed: no kernel image" in told


@pytest.mark.parametrize("gpus", [[], [H100]])
def test_doctor_gives_a_remedy_where_a_gpu_meets_no_kernels(monkeypatch, gpus):
    missing = _load.CudaStatus(False, "salun-fast was built without CUDA")
    told = _told(monkeypatch, _load.LoadStatus(native=True, cuda=missing), gpus)
    assert "not loaded: salun-fast was built without CUDA" in told
    assert "driver none found" in told
    assert ("SALUN_FAST_CUDA=on pip install" in told) == bool(gpus)
    assert ("GPU none usable" in told) == (not gpus)


def test_doctor_s_words_here_are_those_of_this_machine():
    told = " ".join(fine("doctor").split())
    status = _load.status()
    words = "CUDA kernels loaded" if status.cuda.loaded else "CUDA kernels not loaded: "
    assert words in told
    assert f"torch's CUDA {torch.version.cuda or 'none (CPU build)'}" in told
