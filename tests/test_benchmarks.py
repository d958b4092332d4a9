"""The benchmarks run, compare like with like, and hide no miss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks import __main__ as command
from benchmarks import bench_select, clock, rotation
from benchmarks.case import Case, Peer, Size
from benchmarks.cuda_static import sequences
from benchmarks.cuda_static.traffic import UnknownCost, traffic_of, without_memory
from benchmarks.device import why_not
from benchmarks.peers import MaskedByTorch
from benchmarks.table import Ceiling, markdown, measure
from salun_fast import _load, bits, gpu, ops

SIZE = Size(40_000, 4)


def test_the_whole_table_is_written(tmp_path):
    out = tmp_path / "table.md"
    small = ["--numel", "40000", "--tensors", "4", "--rounds", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *small], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    for word in (
        "accumulate_", "masked_sgd_", "masked_adam_", "select", "soft_threshold_", "SalUnOptimizer",
        "torch._foreach_add_", "grad *= mask (bool) + AdamW(fused)",
        "grad *= mask (float) + SGD(fused)",
        "double argsort", "torch.kthvalue", "of ceiling", "extra memory", "torch: ", "cores: ",
    ):  # fmt: skip
        assert word in text, word
    assert text.count("**salun-fast**") == len(command.CASES)
    assert text.startswith("# CPU ops")


def test_a_miss_is_called_a_miss():
    fast, slow = (lambda: None), (lambda: torch.zeros(300_000).sort())
    case = Case("x", slow, "", [Peer("y", fast, target=2)], SIZE.numel, bytes=12, ceiling=0.8)
    rows = measure(case, Ceiling(SIZE), rounds=2, skip_slow=False)
    assert [row.target.endswith("MISSED") for row in rows] == [True, True]
    assert markdown(rows).count("MISSED") == 2


def test_all_ways_to_select_choose_the_same_weights():
    """Ties aside, which normal scores do not have."""
    case = bench_select.case(SIZE)
    words, _ = case.ours()
    sort, kth, topk, partition = (peer.call() for peer in case.peers)
    ours = [bits.unpack(w, (SIZE.numel // SIZE.tensors,)) for w in words]
    assert torch.equal(torch.cat(ours), kth)
    assert torch.equal(torch.cat(sort).bool(), kth)
    assert torch.equal(topk, kth)
    assert torch.equal(torch.from_numpy(partition), kth)
    assert sum(int(m.bool().sum()) for m in sort) == SIZE.numel // 2


@pytest.mark.parametrize("make", command.CASES, ids=lambda make: make.__module__)
def test_every_set_of_inputs_has_its_turn(make, monkeypatch):
    """Ours and every peer, on weights of their own: what a GPU's cache cannot keep."""
    monkeypatch.setattr(rotation, "sets_of", lambda *_: 2)
    made: list[Case] = []
    turns: list[tuple[int, str]] = []

    def recorded(size: Size) -> Case:
        case, index = make(size), len(made)
        made.append(case)
        return Case(
            case.name,
            _told(turns, (index, "ours"), case.ours),
            case.work,
            [Peer(p.name, _told(turns, (index, p.name), p.call)) for p in case.peers],
            case.numel,
        )

    case = rotation.rotating(recorded, SIZE)
    assert len(made) == 2
    turns.clear()
    for call, name in [(case.ours, "ours"), *((peer.call, peer.name) for peer in case.peers)]:
        for _ in range(3):
            call()
        assert turns == [(0, name), (1, name), (0, name)]
        turns.clear()


def _told(turns, what, call):
    def told():
        turns.append(what)
        return call()

    return told


@pytest.mark.parametrize(
    ("numel", "sets"), [(100_000_000, 2), (11_173_962, 5), (1_000_000, 50), (50 * 2**20, 2)]
)
def test_the_sets_exceed_the_cache_four_times(monkeypatch, numel, sets):
    monkeypatch.setattr(rotation, "cache_of", lambda _: 50_000_000)
    assert rotation.sets_of(numel, torch.device("cuda")) == sets
    assert rotation.sets_of(numel, torch.device("cpu")) == 1


class _Event:
    """What happened, in order; a call takes 2 ms on this device."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.log.append("record")

    def synchronize(self) -> None:
        self.log.append("wait")

    def elapsed_time(self, end: _Event) -> float:
        assert self.log[-1] == "wait"
        return 2.0 * self.log.count("call")


def test_a_gpu_is_timed_between_two_events(monkeypatch):
    monkeypatch.setattr(_Event, "log", [])
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: _Event.log.append("idle"))
    time_of = clock.clock_of(torch.device("cuda"))
    assert time_of(lambda: _Event.log.append("call")) == pytest.approx(2e-3)
    calls = ["call"] * clock.CALLS_PER_EVENT
    assert _Event.log == ["idle", "record", *calls, "record", "wait"]


@pytest.mark.parametrize("make", sequences.CASES, ids=lambda make: make.__module__)
def test_everything_a_case_makes_lies_on_its_device(make):
    """Tensors without memory refuse to be mixed with those of another device; what comes out lies
    there as well."""
    with without_memory():
        case = make(Size(4_000, 4, torch.device("cuda")))
        assert traffic_of(case.ours).moved > 0
        for peer in case.peers:
            try:
                assert traffic_of(peer.call).moved > 0, peer.name
            except UnknownCost:
                found = [t for t in tree_leaves(peer.call()) if isinstance(t, torch.Tensor)]
                assert {t.device.type for t in found} <= {"cuda"}, peer.name


def test_a_gpu_has_the_peers_that_are_fast_there():
    with without_memory():
        peers = sequences.CASES[3](Size(4_000, 4, torch.device("cuda"))).peers
    names = " | ".join(peer.name for peer in peers)
    for part in ("AdamW(fused)", "AdamW(foreach)", "AdamW(for-loop)", "int64 masks from the host",
                 "restore by torch.where", "no mask"):  # fmt: skip
        assert part in names


def test_the_peers_that_restore_or_multiply_do_what_they_say():
    """All ways leave the selected weights where ours does, to rounding; the others differ."""
    weights = {}
    for way in ("fused", "foreach", "for-loop"):
        peers = _torchs()
        peers.multiplied_together(way)()
        weights[way] = torch.cat([p.detach() for p in peers._params])
    assert torch.allclose(weights["fused"], weights["foreach"], atol=1e-6)
    assert torch.allclose(weights["fused"], weights["for-loop"], atol=1e-6)
    peers = _torchs()
    peers.multiplied_from_host("fused")()
    assert torch.equal(torch.cat([p.detach() for p in peers._params]), weights["fused"])
    peers = _torchs()
    before = torch.cat([p.detach().clone() for p in peers._params])
    peers.restored("fused")()
    moved = torch.cat([p.detach() for p in peers._params]) != before
    assert torch.equal(moved, torch.cat(peers._masks(torch.bool)))


def _torchs() -> MaskedByTorch:
    words, _ = ops.select(SIZE.rand(2), SIZE.numel // 2)
    return MaskedByTorch(SIZE, words, torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "xpu", "nonsense"])
def test_a_device_that_cannot_run_is_refused_in_words(device, tmp_path):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    out = tmp_path / "table.md"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--device", device, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "expected" in last
    assert "found" in last
    assert device in last
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_gpu_without_working_kernels_is_refused(monkeypatch):
    device = torch.device("cuda", 1)
    loaded = _load.CudaStatus(loaded=True)
    monkeypatch.setattr(_load, "status", lambda: _load.LoadStatus(True, cuda=loaded))
    h100 = [gpu.Gpu(i, "H100", (9, 0)) for i in range(2)]
    monkeypatch.setattr(gpu, "usable", lambda: h100)
    monkeypatch.setattr(gpu, "trial", lambda _: "no kernel image")
    assert "no kernel image" in why_not(device)
    monkeypatch.setattr(gpu, "trial", lambda _: "")
    assert why_not(device) == ""
    assert why_not(torch.device("cuda")) == ""
    assert "cuda:1 (H100), found cuda:2" in why_not(torch.device("cuda", 2))
    monkeypatch.setattr(gpu, "usable", list)
    assert "found none" in why_not(device)
