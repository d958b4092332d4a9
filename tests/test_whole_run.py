"""The benchmark of whole runs compares like with like, and tells what it measured."""

from __future__ import annotations

import functools
import gc
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.whole_run import __main__ as command
from benchmarks.whole_run import agreement, ours, report, subject, theirs
from benchmarks.whole_run.phases import DENSITIES, PHASES, REFERENCE, counted
from benchmarks.whole_run.report import Findings
from benchmarks.whole_run.subject import QUICK, Settings
from salun_fast import SaliencyMask, machine

PLAIN = "torch's usual layout"


class Run(NamedTuple):
    settings: Settings
    found: Findings
    text: str
    picture: bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("whole_run")
    settings = Settings(folder, threads=1, **QUICK)
    out = folder / "results" / "whole_run.md"
    found = command.write(settings, out, "the command", lambda part, *given: part(*given))
    yield Run(settings, found, out.read_text(), out.with_suffix(".png").read_bytes())
    torch.set_num_threads(before)
    gc.collect()


def parameters(settings: Settings, way: str) -> dict[str, torch.Tensor]:
    return dict(subject.model(settings, way).named_parameters())


def test_in_one_layout_both_sides_end_with_the_same_bits(run, monkeypatch):
    monkeypatch.setitem(ours.WAYS, PLAIN, {"channels_last": False})
    ours.run(run.settings, PLAIN)
    same = agreement.compare(run.settings, PLAIN)
    assert (same.mask, same.apart) == (0, 0.0)
    end = parameters(run.settings, REFERENCE)
    assert all(w.equal(end[n]) for n, w in parameters(run.settings, PLAIN).items())


def test_the_reference_freezes_what_its_mask_says_and_moves_the_rest(run):
    settings = run.settings
    path = settings.masks(REFERENCE) / f"{settings.density}.pt"
    start, end = (parameters(settings, way) for way in ("original", REFERENCE))
    masks = torch.load(path)
    total = sum(w.numel() for w in start.values())
    assert sum(int(m.sum()) for m in masks.values()) == int(total * settings.density)
    assert all(w[masks[n] == 0].equal(start[n][masks[n] == 0]) for n, w in end.items())
    moved = sum(int((w != start[n]).sum()) for n, w in end.items())
    assert moved > 0.9 * total * settings.density


def test_every_way_goes_through_every_phase(run):
    for rows in run.found.ways.values():
        assert sorted(row.phase for row in rows) == sorted(PHASES)
        assert all(row.seconds > 0 and row.peak > 0 for row in rows)
    of_reference, own = (counted(way, run.found.ways[way]) for way in (REFERENCE, "salun-fast"))
    assert {row.phase for row in of_reference} - {row.phase for row in own} == {"others"}


def test_files_are_those_of_all_densities(run):
    total = run.found.agreements[0].of
    assert run.found.disk[REFERENCE] > len(DENSITIES) * 8 * total
    assert total / 8 < run.found.one["salun-fast"] < total / 4
    for density in DENSITIES:
        path = run.settings.masks("salun-fast") / f"{density}.safetensors"
        assert SaliencyMask.load(path).count == int(total * density)


def test_results_are_compared_with_the_reference(run):
    itself, *others = run.found.agreements
    assert (itself.way, itself.mask, itself.apart) == (REFERENCE, 0, 0.0)
    assert [each.way for each in others] == list(ours.WAYS)
    assert all(each.mask < 0.02 * each.of and 0 < each.apart < 1 for each in others)
    assert others[0][1:] == others[1][1:]  # keep_memory changes no bit


def test_the_text_says_what_was_found(run):
    slow = {way: [replace(r, seconds=1.0) for r in rows] for way, rows in run.found.ways.items()}
    found = run.found._replace(ways=slow, load=0.0)
    text = report.markdown(run.settings, found, "the command", "plot.png")
    assert "1.20 times as fast (salun-fast)" in text  # 6 phases against 5
    assert "nobody asked for 1.00 times" in text
    assert "| **together, s** | **5** | **5** | **5** | **5** |" in text
    assert "began." in text
    for fact in (*machine.facts().values(), *(each.name for each in found.variants)):
        assert str(fact) in text
    assert "](whole_run.png)" in run.text
    assert run.picture.startswith(b"\x89PNG")
    assert len(run.picture) > 10_000


def test_the_command_line_chooses_size_and_place(monkeypatch, tmp_path):
    asked: list[Any] = []
    monkeypatch.setattr(command, "write", lambda *given: asked.append(given))
    out = tmp_path / "table.md"
    for extra in ([], ["--quick"]):
        assert command.main([*extra, "--threads", "1", "--out", str(out)]) == 0
    (large, *place), (small, *_) = asked
    assert (large.data, large.width, large.threads) == ("fashion-mnist", 64, 1)
    assert (small.data, small.width) == ("digits", 8)
    assert place[:2] == [out, f"python -m benchmarks.whole_run --threads 1 --out {out}"]
    assert place[2] is command.in_fresh_process


def test_a_part_runs_in_a_process_of_its_own():
    import os

    assert command.in_fresh_process(os.getpid) != os.getpid()


def test_saliency_is_the_sum_with_sign_in_eval_mode(run):
    model, images = subject.model(run.settings), subject.task(run.settings)
    sums = theirs.summed_gradients(model, images.forget, subject.method(run.settings))
    assert not model.training
    assert any(bool((total < 0).any()) for total in sums.values())
    assert all(weight.grad is None for weight in model.parameters())
    assert functools.reduce(lambda n, t: n + t.numel(), sums.values(), 0) == sum(
        weight.numel() for weight in model.parameters()
    )
