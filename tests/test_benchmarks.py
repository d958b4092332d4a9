"""The benchmarks run, compare like with like, and hide no miss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks import __main__ as command
from benchmarks import bench_per_sample, bench_select, clock, memory, plots, report, trial
from benchmarks.case import CPU, Case, Peer, Size
from benchmarks.cuda_static import sequences
from benchmarks.cuda_static.traffic import UnknownCost, traffic_of, without_memory
from benchmarks.device import why_not
from benchmarks.peers import MaskedByTorch
from benchmarks.report import Cell, Record, Run
from benchmarks.trial import Ceiling, Row, Trial, measure
from salun_fast import _load, bits, gpu, ops

ROOT = Path(__file__).parents[1]
SIZE = Size(40_000, 4)
SMALL = ["--scale", "0.0001", "--rounds", "1", "-k", "not import and not UNet2DModel"]  # dear


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder of one run of the whole suite."""
    out = tmp_path_factory.mktemp("results")
    run = [sys.executable, "-m", "benchmarks", *SMALL, "--out", str(out)]
    # A worker of xdist says so in its environment, and pytest-benchmark would measure nothing.
    own = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=own)
    assert done.returncode == 0, done.stdout[-5000:]
    return out


def test_one_command_measures_every_claim(results):
    found = {record.claim for record in Run.read(results / "cpu.json").records}
    files = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert found == files - {"import"}


def test_the_tables_hold_the_numbers_of_the_json(results):
    text = (results / "cpu.md").read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks: CPU")
    found = json.loads((results / "cpu.json").read_text())
    for each in found["benchmarks"]:
        info = each["extra_info"]
        ours = info["rows"][0]
        assert ours["seconds"] == each["stats"]["median"]
        line = f"| {info['case']}: {Cell(**info['size'])} | **salun-fast** | "
        assert line + trial.milliseconds(ours["seconds"]) in text
    for name, value in found["facts"].items():
        assert f"* {name}: {value}" in text
    assert found["command"].startswith("python -m benchmarks --scale")
    assert found["command"] in text


def test_every_plot_is_drawn(results):
    names = [f"cpu_{name}.png" for name in plots.PICTURES]
    assert sorted(path.name for path in results.glob("*.png")) == sorted(names)
    text = (results / "cpu.md").read_text(encoding="utf-8")
    for name in names:
        assert (results / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text


def test_a_miss_is_called_a_miss_and_slower_slower():
    fast, slow = (lambda: None), (lambda: torch.zeros(300_000).sort())
    peer = Peer("y", fast, target=2, margin=0.0)
    case = Case("x", slow, "", [peer], SIZE.numel, bytes=12, ceiling=0.8, limit=0.0, memory=-1.0)
    assert not any(row.verdicts for row in _record(case.without_targets()).rows)
    record = _record(case)
    verdicts = [verdict for row in record.rows for verdict in row.verdicts]
    assert [verdict.reached for verdict in verdicts] == [False] * 5
    text = report.markdown(_run(record))
    assert "0 of 5 are reached." in text
    assert text.count("**MISSED**") == 10  # among the targets, and in the table
    assert "x **slower** |" in text
    assert "Nowhere in this run" not in text
    assert "x slower than y" in text


def test_what_is_reached_is_called_reached():
    fast, slow = (lambda: None), (lambda: torch.zeros(300_000).sort())
    peer = Peer("y", slow, target=2, margin=0.0)
    case = Case("x", fast, "", [peer], SIZE.numel, bytes=12, ceiling=0.8, limit=9.0, memory=1e9)
    text = report.markdown(_run(_record(case)))
    assert "5 of 5 are reached." in text
    assert "MISSED" not in text
    assert "x faster |" in text
    assert "Nowhere in this run" in text


def test_memory_in_a_process_of_its_own():
    """This one has freed memory at hand, which growth does not show."""
    script = (
        "from tests.test_benchmarks import larger_memory_is_judged, extra_memory_is_counted;"
        "larger_memory_is_judged(); extra_memory_is_counted()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_times_that_are_allowed_to_be_larger():
    """As per-sample saliency beside a plain backward."""
    peer = Peer("y", lambda: None, target=1 / 1.6, memory=1.25)
    found = trial._against(peer, ours=1.7, seconds=1.0)
    assert [(v.target, v.found, v.reached) for v in found] == [("≤ 1.6x its time", "1.70x", False)]
    assert trial._against(peer, ours=1.5, seconds=1.0)[0].reached


def larger_memory_is_judged() -> None:
    peer = Peer("y", lambda: None, target=1 / 1.6, memory=1.25)
    rows = _rows(lambda: torch.ones(4_000_000), replace(peer, call=lambda: torch.ones(2_000_000)))
    verdict = rows[1].verdicts[-1]
    assert verdict.target == "≤ 1.25x its extra memory"
    assert float(verdict.found[:-1]) == pytest.approx(2, rel=0.2)
    assert not verdict.reached


def extra_memory_is_counted() -> None:
    """What is kept, and what a call takes."""
    peer = Peer("y", lambda: None, keeps=100.0)
    rows = _rows(lambda: torch.ones(8_000_000), peer)
    assert rows[0].memory == pytest.approx(32e6, rel=0.1)
    assert rows[1].memory == pytest.approx(100 * SIZE.numel, rel=0.1)


def test_a_peer_that_does_not_fit_is_left_out_in_words(monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda _: 3e8)
    asked = []
    quick = Peer("quick", lambda: asked.append("quick"), needs=1e4)
    slow = Peer("slow", lambda: asked.append("slow"), needs=1e4, slow=True)
    gone = Peer("gone", lambda: asked.append("gone"), missing="it is not installed")
    _, *rows = _rows(lambda: None, quick, slow, gone)
    assert not asked
    assert [row.skipped for row in rows] == [
        "not run: needs 0.4 GB, 0.3 GB are free",
        "not run: needs 0.4 GB, 0.3 GB are free",
        "not run: it is not installed",
    ]
    record = Record("c", "says", "x", Cell.of(SIZE), [Row("salun-fast", 1.0, 1.0), *rows])
    assert "| quick |  |  |  |  |  | not run: needs 0.4 GB, 0.3 GB are free |" in report.table(
        [record]
    )


def test_slow_peers_run_once_and_not_at_all_where_they_take_minutes():
    asked = []
    peer = Peer("y", lambda: asked.append("y"), slow=True)
    measure(_case(lambda: None, peer), Ceiling(1000), rounds=3)
    assert asked == ["y"]
    for numel, skip in [(SIZE.numel, True), (trial.SLOW_LIMIT + 1, False)]:
        case = replace(_case(lambda: None, peer), numel=numel)
        measure(case, Ceiling(1000), rounds=1, skip_slow=skip)
        assert asked == ["y"]


@pytest.mark.parametrize("cold", [True, False])
def test_the_ceiling_comes_before_every_call_and_leaves_nothing_in_a_cache(cold, monkeypatch):
    told = []
    ceiling = Ceiling(1000)
    monkeypatch.setattr(ceiling, "call", lambda: told.append("ceiling"))
    peers = [Peer(name, lambda name=name: told.append(name)) for name in "yz"]
    case = replace(_case(lambda: told.append("ours"), *peers), cold=cold,
                   before=lambda: told.append("before"))  # fmt: skip
    running = Trial(case, ceiling)
    running.time_others()
    case.ours()
    evicting = ["ceiling"] if cold else []
    assert told == ["ceiling", *evicting, "y", *evicting, "z", "before", *evicting, "ours"]


def _case(ours, *peers: Peer) -> Case:
    return Case("x", ours, "", list(peers), SIZE.numel)


def _rows(ours, *peers: Peer) -> list[Row]:
    return measure(_case(ours, *peers), Ceiling(1000), rounds=2)


def _record(case: Case) -> Record:
    return Record("claim", "says", case.name, Cell.of(SIZE), measure(case, Ceiling(10**6), 2))


def _run(record: Record) -> Run:
    facts = {"processor": "abacus", "threads": 1}
    return Run([record], "cpu", facts, "command", "today", [])


def test_what_did_not_fit_at_all_is_named():
    run = replace(_run(_record(_case(lambda: None))), left_out=["test_x[SD]: needs 20 GB"])
    assert "## Left out\n\n* test_x[SD]: needs 20 GB" in report.markdown(run)


def test_sizes_scale_and_keep_their_tensors():
    size = Size(30, 3, counts=(10, 18, 2)).scaled(0.1)
    assert size.numels == (1, 2, 1)
    assert size.numel == 4
    assert [t.numel() for t in size.rand(0)] == [1, 2, 1]
    assert Size(10**9, 100).scaled(1e-9).numels == (1,) * 100


def test_all_ways_to_select_choose_the_same_weights():
    """Ties aside, which normal scores do not have."""
    case = bench_select.case(SIZE)
    words, _ = case.ours()
    sort, *others = (peer.call() for peer in case.peers)
    ours = torch.cat([bits.unpack(w, (SIZE.numel // SIZE.tensors,)) for w in words])
    assert torch.equal(torch.cat(sort).bool(), ours)
    assert [torch.equal(other, ours) for other in others] == [True] * 3
    assert sum(int(m.bool().sum()) for m in sort) == SIZE.numel // 2


@pytest.mark.parametrize("name", bench_per_sample.WORKLOADS)
def test_all_ways_to_per_sample_saliency_agree(name):
    """Ours, torch.func's and, where it is installed, Opacus', on what each knows."""
    torch.manual_seed(0)
    work = bench_per_sample.WORKLOADS[name](True).on(CPU)
    theirs = bench_per_sample.by_torch_func(work)()
    ours = bench_per_sample.ours(work)()
    assert _distance({key: ours[key] for key in theirs}, theirs) < 1e-5
    peer = bench_per_sample.opacus(work)
    if not peer.missing:
        known = peer.call()
        assert _distance(known, {key: theirs[key] for key in known}) < 1e-5


def _distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative, of all scores together: some, of biases before a softmax, are rounding alone."""
    left, right = (torch.cat([t.flatten() for t in each.values()]) for each in (found, expected))
    return float((left - right).norm() / right.norm())


class _Event:
    """What happened, in order; a call takes 2 ms on this device."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.log.append("record")

    def elapsed_time(self, end: _Event) -> float:
        assert self.log[-1] == "wait"
        return 2.0


def test_a_gpu_is_timed_between_two_events(monkeypatch):
    """Each call by itself, after something else has driven its data out of the cache."""
    monkeypatch.setattr(_Event, "log", [])
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: _Event.log.append("wait"))
    call, before = (lambda what=what: _Event.log.append(what) for what in ("call", "before"))
    assert clock.seconds_of(call, before, torch.device("cuda")) == pytest.approx(2e-3)
    each = ["before", "record", "call", "record"]
    assert _Event.log == ["wait", *each * clock.CALLS_PER_READING, "wait"]


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
    params, grads = SIZE.rand(1), SIZE.rand(2)
    words, _ = ops.select(grads, SIZE.k)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    return MaskedByTorch(SIZE, params, grads, words, torch.optim.SGD, **options)


def test_the_peers_step_on_the_state_they_are_given():
    """Which is ours too: a model of 860 M weights fits once."""
    params, grads, m, v = SIZE.rand(1), SIZE.rand(2), SIZE.zeros(), SIZE.zeros()
    words, _ = ops.select(grads, SIZE.k)
    state = {"exp_avg": m, "exp_avg_sq": v}
    peers = MaskedByTorch(SIZE, params, grads, words, torch.optim.AdamW, state, lr=0.1)
    for way in ("fused", "foreach"):
        before = [tensor.clone() for tensor in (params[0], m[0], v[0])]
        peers.plain(way)()
        after = (params[0], m[0], v[0])
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "xpu", "nonsense"])
def test_a_device_that_cannot_run_is_refused_in_words(device, tmp_path, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", device, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expected" in last
    assert "found" in last
    assert device in last
    assert not (tmp_path / "out").exists()


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
