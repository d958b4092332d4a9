"""The emulator itself: what a GPU would compute comes out, and what it would not forgive is told.

``engine_cases.cu`` holds the kernels.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build

CASES = Path(__file__).with_name("engine_cases.cu")
ORDERS = ("forward", "reverse", "7")

SOUND = (
    "warps", "bits", "halves", "indices", "barrier-votes", "reverse", "warp-exchange", "atomics",
    "running-sum", "hand-over", "block-sum", "launches-in-order", "fill", "wide", "many-threads",
)  # fmt: skip

HERE = r"at \S*engine_cases\.cu:\d+"
RACE = "WARNING: ThreadSanitizer: data race"

# Fault, the kinds of build that tell, and what they say.
FAULTS = [
    (
        "diverged-ballot",
        "all",
        rf"waits in __ballot_sync \(mask 0xffffffff\) {HERE}; lane 8 has ex",
    ),
    ("foreign-mask", "all", r"the mask 0x00000001 of __ballot_sync .*lacks the caller's own lane"),
    ("two-ballots", "all", rf"waits in __ballot_sync .*; lane 16 is in __ballot_sync .*{HERE}"),
    ("divergent-barrier", "all", rf"divergent barrier: .* waits in __syncthreads {HERE}, block"),
    ("barrier-after-exit", "all", r"divergent barrier: .*, but block \(0,0,0\) thread \(64,0,0\)"),
    ("barrier-and-ballot", "all", r"deadlock: .*lane 3 is in __syncthreads"),
    ("empty-grid", "all", "invalid launch configuration"),
    ("large-block", "all", "invalid launch configuration"),
    ("endless", "all", "livelock: block .* keeps repeating atomic operations"),
    ("unset-shared", "plain", "wrong result: sums from 0"),
    ("missing-barrier", "plain thread", f"wrong result|{RACE}"),
    ("missing-syncwarp", "thread", RACE),
    ("missing-fence", "thread", RACE),
    ("missing-wait", "thread", RACE),
    ("race-between-blocks", "thread", RACE),
    ("past-the-end", "address", "heap-buffer-overflow"),
    ("past-shared", "address", "global-buffer-overflow|out of bounds"),
    ("misaligned", "address", "runtime error: .* misaligned address"),
]


@cache
def _program(kind: str) -> Path:
    if reason := build.unavailable(kind):
        pytest.skip(reason)
    return build.program(kind, [CASES])


def _run(kind: str, *cases: str, order: str = "forward", **more: str) -> tuple[int, str]:
    done = subprocess.run(
        build.command(kind, str(_program(kind)), *cases),
        env=build.environment(kind, CUDA_ON_CPU_ORDER=order, **more),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", build.KINDS)
def test_sound_kernels_give_their_results_in_any_order(kind, order):
    assert _run(kind, *SOUND, order=order) == (0, f"{len(SOUND)} held\n")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["plain", "thread"])
def test_blocks_may_run_side_by_side(kind, order):
    done = _run(kind, *SOUND, order=order, CUDA_ON_CPU_WORKERS="3")
    assert done == (0, f"{len(SOUND)} held\n")


@pytest.mark.parametrize(
    ("fault", "kind", "report"),
    [
        pytest.param(fault, kind, report, id=f"{fault}-{kind}")
        for fault, kinds, report in FAULTS
        for kind in (build.KINDS if kinds == "all" else kinds.split())
    ],
)
def test_a_fault_is_told(fault, kind, report):
    code, said = _run(kind, fault, CUDA_ON_CPU_SECONDS="0.5")
    assert code != 0, said
    assert re.search(report, said), said[-3000:]
