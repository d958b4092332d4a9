"""Time grows with the number of weights and falls with threads, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import bench_accumulate, bench_masked_adam, bench_select
from benchmarks.case import Size
from benchmarks.sizes import DDPM

CASES = {
    "accumulate": (bench_accumulate.case, 12),
    "select": (bench_select.case, 4.5),
    "adamw": (bench_masked_adam.case, 16.2),
}


@pytest.mark.parametrize("numel", [10**5, 10**6, 10**7, 10**8, 10**9])
@pytest.mark.parametrize("op", CASES)
def test_size(claim, op, numel):
    make, needs = CASES[op]
    claim(make, Size(numel, 100), needs=needs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", CASES)
def test_threads(claim, op, threads):
    make, _ = CASES[op]
    claim(make, replace(DDPM, threads=threads))
