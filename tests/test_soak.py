"""Memory stays flat over many masked steps, new selections and round trips of the state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.soak import __main__ as command
from benchmarks.soak.report import COLUMNS
from benchmarks.soak.watch import Growth, Sample
from benchmarks.soak.work import EAGER, Plan, Way, run

SHORT = Plan(steps=300, sampled=25, selected=50, returned=25)
SGD, ADAM, ADAMW, GENERAL = EAGER


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", EAGER, ids=lambda way: way.name)
def test_memory_is_flat(way):
    samples = run(way, SHORT)
    assert [sample.step for sample in samples] == list(range(125, 301, 25))
    assert Growth.over(samples).flat, Growth.over(samples)


LEAKS: dict[str, tuple[Callable[[int], object], str]] = {
    "a tensor in thirty steps": (
        lambda step: torch.zeros(1) if step % 30 == 0 else None,
        "tensors",
    ),
    "kilobytes per step": (lambda step: bytes([step % 255 + 1]) * 65_536, "resident"),
    "objects": (lambda step: [step, [step]], "objects"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak):
    makes, told = LEAKS[leak]
    held: list[object] = []
    growth = Growth.over(run(SGD, SHORT, lambda step: held.append(makes(step))))
    assert getattr(growth, told) > 0
    assert not growth.flat


def test_the_command_writes_a_table_and_tells_a_leak(monkeypatch, tmp_path: Path, capsys):
    def sampled(way: Way, plan: Plan, leak: float) -> list[Sample]:
        steps = range(plan.warm + plan.sampled, plan.steps + 1, plan.sampled)
        grown = leak if way is GENERAL else 0
        return [Sample(step, 5e8 + grown * step, 40, 1000) for step in steps]

    for leak, code, word in ((0, 0, "flat"), (1e4, 1, "GROWS")):
        monkeypatch.setattr(command, "in_fresh_process", functools.partial(sampled, leak=leak))
        out = tmp_path / "soak.md"
        assert command.main(["--steps", "5000", "--no-compile", "--out", str(out)]) == code
        text = out.read_text()
        assert text.startswith("# Memory over many masked steps\n\n`python -m benchmarks.soak --st")
        rows = [row for row in text.splitlines() if row.startswith("| RMSprop")]
        assert rows[0].endswith(f"{word} |")
        megabytes = [float(cell) for cell in rows[1].split("|")[2:-1]]
        assert (len(megabytes), megabytes == sorted(set(megabytes))) == (COLUMNS, bool(leak))
        assert "| 2,100 |" in text
        assert "| 5,000 |" in text
    with pytest.raises(SystemExit):
        command.main(["--steps", "100"])
    assert "--steps must be at least 4,000, found 100" in capsys.readouterr().err
