"""Time against the number of weights, from what fits a cache to what hardly fits the machine, and
against threads. Targets hold from 100 M weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import bench_accumulate, bench_masked_adam, bench_select
from benchmarks.case import Size
from benchmarks.sizes import DDPM

CASES = {  # how to make it, bytes per weight it needs, density
    "accumulate": (bench_accumulate.case, 12, None),
    "select": (bench_select.case, 4.5, 0.5),
    "adamw": (bench_masked_adam.case, 16.2, 0.5),
}


@pytest.mark.parametrize("numel", [10**5, 10**6, 10**7, 10**8, 10**9])
@pytest.mark.parametrize("op", CASES)
def test_size(claim, op, numel):
    make, needs, density = CASES[op]
    claim(make, Size(numel, 100, density=density), needs=needs, targets=numel >= 10**8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", CASES)
def test_threads(claim, op, threads):
    make, _, density = CASES[op]
    claim(make, replace(DDPM, threads=threads, density=density), targets=False)
