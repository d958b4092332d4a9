"""``timed(case)``: ours and every peer under pytest-benchmark, at a size that only smokes."""

from __future__ import annotations

import pytest

from benchmarks.case import Size


def pytest_addoption(parser):
    parser.addoption("--numel", type=int, default=200_000, help="weights per benchmark")


@pytest.fixture
def timed(request, benchmark):
    size = Size(request.config.getoption("--numel"), 4)

    def run(make):
        case = make(size)
        for peer in case.peers:
            peer.call()
        benchmark(case.ours)

    return run
