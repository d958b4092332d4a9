"""``claim(make, size)``: ours, every peer and the ceiling in turn, under pytest-benchmark, which
times ours; what the others took, and what follows, is in its ``extra_info``."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import memory, report
from benchmarks.case import Case, Make, Size
from benchmarks.device import why_not
from benchmarks.trial import Ceiling, Trial, ceiling_for
from salun_fast import machine

ROUNDS, FEW, MANY = 7, 3, 5e8  # of more weights than many, a few rounds will do
SMOKE = 1e-3  # of the weights, where nothing is timed
LEFT_OUT = pytest.StashKey[list[str]]()
MEASURED = pytest.StashKey[list[report.Record]]()


def pytest_addoption(parser):
    group = parser.getgroup("salun-fast")
    group.addoption("--device", default="cpu", help="cpu, cuda or cuda:N")
    group.addoption("--scale", type=float, help="of all numbers of weights; 1 when timing")
    group.addoption("--rounds", type=int, help="of every claim; its own number by default")
    group.addoption("--skip-slow", action="store_true", help="leave out sorts and kthvalue")


def pytest_configure(config):
    config.stash[LEFT_OUT], config.stash[MEASURED] = [], []


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    text = request.config.getoption("--device")
    try:
        found = torch.device(text)
    except RuntimeError:
        pytest.exit(f"--device: expected cpu, cuda or cuda:N, found {text}", 2)
    if reason := why_not(found):
        pytest.exit(f"--device {text}: {reason}", 2)
    return found


@pytest.fixture(scope="session")
def scale(request) -> float:
    given = request.config.getoption("--scale")
    timing = not request.config.getoption("benchmark_disable")
    return given or (1.0 if timing else SMOKE)


@pytest.fixture(scope="session")
def ceiling(device, scale) -> Ceiling:
    return ceiling_for(device, scale)


@pytest.fixture
def claim(request, benchmark, device, scale, ceiling):
    options = request.config.option

    def run(
        make: Make,
        size: Size,
        *,
        rounds: int | None = None,
        needs: float = 0.0,
        targets: bool = True,
    ) -> None:
        """needs: bytes per weight of ours and what it works on. targets: whether they are meant
        at this size."""
        size = replace(size, device=device).scaled(scale)
        _skip_without_room(request, size, needs)
        with _threads(size.threads):
            case = make(size) if targets else make(size).without_targets()
            trial = Trial(case, ceiling, options.skip_slow)
            trial.warm_up()
            count = options.rounds or rounds or (FEW if size.numel > MANY else ROUNDS)
            benchmark.pedantic(case.ours, setup=trial.time_others, rounds=count)
            trial.time_slow()
            if benchmark.enabled:
                _keep(request, benchmark, case, size, trial)

    return run


def _keep(request, benchmark, case: Case, size: Size, trial: Trial) -> None:
    rows = trial.rows(trial.median_of_ours or benchmark.stats.stats.median)
    module = request.module
    record = report.Record(
        claim=module.__name__.rpartition(".")[2].removeprefix("bench_"),
        says=" ".join(module.__doc__.split()),
        case=case.name,
        size=report.Cell.of(size),
        rows=rows,
    )
    benchmark.extra_info.update(asdict(record))
    request.config.stash[MEASURED].append(record)


def _skip_without_room(request, size: Size, needs: float) -> None:
    if why := memory.no_room(needs * size.numel, size.device):
        request.config.stash[LEFT_OUT].append(f"{request.node.nodeid.rpartition('/')[2]}: {why}")
        pytest.skip(why)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config, machine_info):
    del machine_info["node"]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    device = torch.device(config.getoption("--device"))
    output_json |= {
        "device": device.type,
        "facts": machine.facts(device),
        "command": _command(),
        "left_out": config.stash[LEFT_OUT],
    }


def _command() -> str:
    program = Path(sys.argv[0])
    shown = "python -m benchmarks" if program.name == "__main__.py" else program.name
    return f"{shown} {shlex.join(sys.argv[1:])}".strip()


def pytest_terminal_summary(terminalreporter, config):
    for record in config.stash[MEASURED]:
        terminalreporter.write_sep("-", f"{record.case}, {record.size}")
        terminalreporter.write_line(report.plain_text(record.rows))
