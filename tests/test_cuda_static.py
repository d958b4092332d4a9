"""What the compiler made of the CUDA kernels holds what the design promises, and the report on it
counts right."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from functools import cache
from math import ceil
from pathlib import Path

import pytest
import torch

from benchmarks.cuda_static import __main__ as command
from benchmarks.cuda_static import estimate, kernels, report, sequences
from benchmarks.cuda_static.footprint import footprints
from benchmarks.cuda_static.kernels import Kernel
from benchmarks.cuda_static.occupancy import MULTIPROCESSORS, occupancy
from benchmarks.cuda_static.traffic import Traffic, empty, traffic_of, without_memory
from salun_fast import _load

COMMITTED = Path(__file__).parents[1] / "benchmarks/results/cuda_static.md"
ARCHITECTURES = list(MULTIPROCESSORS)
STEP = re.compile(r"(?:masked|careful)_step<(\w+)(?:<(\w+)>)?, (\w+), (\w+), (\w+)State>")
STATES = {("SgdRule", ""): 1, ("AdamRule", "false"): 2, ("AdamRule", "true"): 3}
BITS = {"Float32": 32, "Float16": 16, "BFloat16": 16}
GROUP = 8  # kGroup of csrc/cuda/table.cuh


@cache
def _read(architecture: str) -> list[Kernel]:
    status = _load.status().cuda
    if status.library is None:
        pytest.skip(f"no CUDA library to read: {status.reason}")
    return kernels.read(Path(status.library), architecture)


@pytest.fixture(params=ARCHITECTURES)
def compiled(request: pytest.FixtureRequest) -> list[Kernel]:
    return _read(request.param)


def test_every_kernel_of_every_op_is_there(compiled):
    names = Counter(kernel.name.split("<")[0] for kernel in compiled)
    assert names["accumulate_kernel"] == 3  # fp32, fp16, bf16
    # SGD, Adam, amsgrad; each format of weights and gradients; dense and compact state.
    assert names["masked_step"] == 54
    assert names["careful_step"] == 36  # the same of half weights: masters, stochastic rounding
    assert names["count_digits"] == 2  # of scores, of differences
    assert names["pack_masks"] == names["shrink"] == 1
    assert max(Counter(kernel.name for kernel in compiled).values()) == 1


def test_no_kernel_spills(compiled):
    assert {k.name: (k.spills, k.stack, k.local) for k in compiled if k.spills + k.stack} == {}
    assert all(kernel.local == 0 for kernel in compiled)


def test_every_array_of_a_step_moves_by_128_bits(compiled):
    """Exactly as many wide accesses as the arrays of a group of eight need, none left narrow but
    the ragged ends: at most one narrow access per element of each array. Compact state alone moves
    one by one: its groups begin anywhere."""
    named = [k for k in compiled if k.name.startswith(("masked_step", "careful_step"))]
    steps = [(STEP.fullmatch(k.name), k) for k in named]
    for match, kernel in steps:
        assert match is not None, kernel.name
        rule, amsgrad, weight, gradient, layout = match.groups(default="")
        states = STATES[rule, amsgrad]
        master = [32] if kernel.name.startswith("careful_step") else []
        written = [BITS[weight], *master] + [32] * states * (layout == "Dense")
        read = [*written, BITS[gradient]]
        narrow = GROUP * (1 + len(master) + states)
        assert kernel.loads(128) == _wide(read), kernel.name
        assert kernel.stores(128) == _wide(written), kernel.name
        assert sum(kernel.stores(bits) for bits in (64, 32, 16, 8)) == narrow, kernel.name


def test_every_array_of_an_accumulation_moves_by_128_bits(compiled):
    for kernel in compiled:
        if kernel.name.startswith("accumulate_kernel"):
            gradient = BITS[kernel.name.removeprefix("accumulate_kernel<").removesuffix(">")]
            assert kernel.loads(128) == _wide([32, gradient])
            assert kernel.stores(128) == _wide([32, gradient])  # gradients may be set to zero


def test_scores_are_read_by_128_bits(compiled):
    """One reading per format: 2, 1 and 1 wide loads; twice that where two arrays are read."""
    wide = {k.name: (k.loads(128), k.stores(128)) for k in compiled}
    once = _wide([32, 16, 16])
    assert wide["count_digits<ScoreSlot>"] == (once, 0)
    assert wide["pack_masks"] == (2 * once, 0)  # two turns per chunk
    assert wide["count_digits<DeltaSlot>"] == (2 * once, 0)
    assert wide["shrink"] == (2 * once, once)


def _wide(bits: list[int]) -> int:
    return sum(ceil(GROUP * each / 128) for each in bits)


def test_division_and_square_root_are_ieee(compiled):
    """MUFU approximates. IEEE division and square root start from a reciprocal and refine it; on
    its own, or as any other function, it would not give the CPU's bits. A division of integers
    turns it into one (F2I) and corrects that."""
    for kernel in compiled:
        used = {name for name in kernel.opcodes if name.startswith("MUFU")}
        assert used <= {"MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H", "MUFU.RSQ64H"}, kernel.name
        if used:
            whole = used == {"MUFU.RCP"} and any(name.startswith("F2I") for name in kernel.opcodes)
            assert whole or kernel.opcodes["FFMA"] + kernel.opcodes["DFMA"] > 0, kernel.name


def test_the_committed_report_is_of_this_library():
    text = COMMITTED.read_text(encoding="utf-8")
    by_architecture = [_read(name) for name in ARCHITECTURES]
    if report.built_with() not in text:
        pytest.skip(f"the committed report is of other tools than here: {report.built_with()}")
    assert report.kernel_table(by_architecture) in text


def test_the_committed_estimates_are_what_the_code_counts():
    text = COMMITTED.read_text(encoding="utf-8")
    for table in (report.footprint_table(), report.time_table(), report.assumption_table()):
        assert table in text
    assert "estimate" in text


@pytest.mark.parametrize(
    ("registers", "shared", "expected"),
    [
        (32, 0, 1.0),
        (33, 0, 0.75),
        (64, 0, 0.5),
        (65, 0, 0.375),
        (255, 0, 0.125),
        (32, 33_792, 0.75),
    ],
)
def test_occupancy_is_the_calculators(registers, shared, expected):
    kernel = Kernel("x", "sm_90", registers, 0, 0, shared, Counter())
    assert occupancy(kernel) == expected


def test_widths_and_spills_are_told_apart():
    opcodes = {
        "LDG.E.128.CONSTANT": 1, "LD.E.128": 1, "LD.E": 5, "LDG.E.U16": 2, "ST.E.128": 3,
        "LDS.128": 9, "LDL.LU": 1, "STL.64": 1, "NOP": 4,
    }  # fmt: skip
    kernel = Kernel("x", "sm_90", 32, 0, 0, 0, Counter(opcodes))
    assert (kernel.loads(128), kernel.loads(32), kernel.loads(16)) == (2, 5, 2)
    assert (kernel.stores(128), kernel.stores(32)) == (3, 0)
    assert kernel.spills == 2
    assert kernel.instructions == 23


def test_traffic_counts_what_torch_would_do():
    with without_memory():
        a, b = empty([torch.Size([1_000])] * 2)
        mask = torch.empty(1_000, dtype=torch.int64)
        assert traffic_of(lambda: a.add_(b)) == Traffic(1, 12_000, 0)
        assert traffic_of(lambda: a + b) == Traffic(1, 12_000, 0)
        assert traffic_of(lambda: a.reshape(10, 100)[2:].t()) == Traffic()
        assert traffic_of(lambda: mask.to(a.device)) == Traffic(0, 8_000, 8_000)
        assert traffic_of(lambda: torch._foreach_mul_([a] * 200, [b] * 200)).launches == 4
        assert traffic_of(a.argsort) == Traffic(5, 1_000 * (4 * 2 * 12 + 4), 0)
        assert traffic_of(lambda: mask.mul_(2)) == Traffic()  # on the host


def test_an_op_moves_no_more_than_it_must_but_for_the_search():
    found = {(f.op, f.dtype): f for f in footprints()}
    assert found["masked_sgd_", "fp32"].moved == 20.125
    assert found["masked_adam_", "bf16"].moved == 22.125
    assert {op for (op, _), f in found.items() if f.reread} == {"select", "soft_threshold_"}


def test_the_report_estimates_what_the_benchmarks_measure():
    ways = sequences.ways(sequences.MODELS[0])
    ours = [way.case for way in ways if way.name == "salun-fast"]
    assert len(ours) == len(sequences.CASES)
    assert {"double argsort", "AdamW(fused), no mask"} <= {way.name for way in ways}
    assert not any("kthvalue" in way.name or "topk" in way.name for way in ways)  # unknown cost
    from_host = {way.name for way in ways if way.traffic.carried}
    assert from_host == {name for name in (way.name for way in ways) if "from the host" in name}


def test_an_estimate_adds_up():
    gpu = estimate.Gpu(bandwidth=1e12, share=0.5, per_launch=1e-6, from_host=1e10)
    assert estimate.seconds(Traffic(2, 10**9, 10**8), gpu) == pytest.approx(2e-3 + 2e-6 + 1e-2)


def test_missing_tools_are_named_with_their_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(kernels.ToolMissing, match="cuobjdump.*pip install nvidia-cuda-cuobjdump"):
        kernels.tool("cuobjdump")
    out = tmp_path / "report.md"
    monkeypatch.setattr(sys, "argv", ["cuda_static", "--out", str(out), "--library", "any.so"])
    assert command.main() == 2
    assert "pip install nvidia-cuda-cuobjdump" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_without_kernels_is_refused(tmp_path):
    (tmp_path / "x.so").write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match=r"cuobjdump .*x\.so failed"):
        kernels.read(tmp_path / "x.so", "sm_90")
