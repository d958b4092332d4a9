"""All op tests once more on the emulated kernels: watched by sanitizers, in other orders of threads
and blocks, on devices of other sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.cuda_on_cpu import build

MOST_SECONDS = 280


@dataclass(frozen=True)
class Run:
    """One way to run them."""

    kind: str
    order: str
    workers: int  # blocks that run side by side
    multiprocessors: int
    big: int  # elements of the largest tensors

    def environment(self) -> dict[str, str]:
        return build.python_environment(
            self.kind,
            CUDA_ON_CPU_ORDER=self.order,
            CUDA_ON_CPU_WORKERS=str(self.workers),
            CUDA_ON_CPU_MULTIPROCESSORS=str(self.multiprocessors),
            SALUN_FAST_TEST_BIG=str(self.big),
        )

    def start(self) -> subprocess.CompletedProcess[str]:
        pytest_of_ops = [sys.executable, "-m", "pytest", "tests/ops", "--backend", "cuda_on_cpu"]
        # Reports go to a stream that pytest would swallow: --capture=no.
        options = ["--hypothesis-profile", "sanitized", "--capture=no", "-p", "no:cacheprovider"]
        library = ["--emulated-library", str(build.library(self.kind))]
        return subprocess.run(
            build.command(self.kind, *pytest_of_ops, *options, *library),
            cwd=build.ROOT, env=self.environment(), timeout=MOST_SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip


# The slowest first: two run at a time.
RUNS = {
    "thread": Run("thread", "11", workers=2, multiprocessors=1, big=50_000),
    "address": Run("address", "reverse", workers=1, multiprocessors=2, big=50_000),
    "plain-reverse": Run("plain", "reverse", workers=1, multiprocessors=5, big=200_000),
    "plain-shuffled": Run("plain", "7", workers=3, multiprocessors=3, big=200_000),
}

Done = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def done() -> Iterator[Done]:
    able = {name: run for name, run in RUNS.items() if not build.unavailable(run.kind)}
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {name: pool.submit(run.start) for name, run in able.items()}


@pytest.mark.parametrize("name", RUNS)
def test_every_op_test_passes_and_nothing_is_reported(done, name):
    if name not in done:
        pytest.skip(build.unavailable(RUNS[name].kind))
    run = done[name].result()
    said = run.stdout
    assert run.returncode == 0, said[-6000:]
    assert not re.search("Sanitizer|runtime error:|cuda_on_cpu: ", said), said[-6000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed, said[-2000:]
    assert int(passed[1]) > 200
