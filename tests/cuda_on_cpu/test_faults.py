"""The test of the tester: faults planted in the project's own kernels, each one told by the build
that is there for it. Edits that no longer fit the sources fail loudly."""

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
from tests.cuda_on_cpu.build import Edit

RACE = r"(?s)WARNING: ThreadSanitizer: data race.*"  # and the kernel
OVERFLOW = r"AddressSanitizer: (heap|global)-buffer-overflow|runtime error: index \d+ out of bounds"


@dataclass(frozen=True)
class Fault:
    """One edit of one file, shown to one .cu, and what is then said while an op runs."""

    kind: str
    op: str
    seen_by: str
    edit: Edit
    report: str
    order: str = "forward"
    workers: int = 1


FAULTS = {
    "a removed barrier after zeroing the bins": Fault(
        "thread", "select", "select.cu",
        Edit("cuda/threshold.cuh", "bins[i] = 0;\n  __syncthreads();", "bins[i] = 0;"),
        RACE + "count_digits",
    ),
    "a removed barrier before reading what one thread found": Fault(
        "thread", "select", "select.cu",
        Edit("cuda/select.cu", "shared_before = before;\n  }\n  __syncthreads();",
             "shared_before = before;\n  }"),
        RACE + "pack_masks",
    ),
    "a barrier that only some threads reach": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/select.cu", "shared_before = before;\n  }\n  __syncthreads();",
             "shared_before = before;\n    __syncthreads();\n  }"),
        "cuda_on_cpu: divergent barrier: .*select.cu",
    ),
    "a race between blocks": Fault(
        "thread", "select", "select.cu",
        Edit("cuda/threshold.cuh",
             "atomicAdd(&counts[digit], static_cast<unsigned long long>(sum))",
             "counts[digit] += sum"),
        RACE + "count_digits",
    ),
    "shared memory that nobody sets": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/threshold.cuh", "i < kHistogramBins * kCopies; i += kBlock) bins[i] = 0",
             "i < 0; i += kBlock) bins[i] = 0"),
        "select differs from the reference|terminate|Segmentation",
    ),
    "a shared array one too short": Fault(
        "address", "select", "select.cu",
        Edit("cuda/threshold.cuh", "i < kHistogramBins * kCopies; i +=",
             "i <= kHistogramBins * kCopies; i +="),
        OVERFLOW,
    ),
    "an index one too far": Fault(
        "address", "masked_sgd_", "masked_sgd.cu",
        Edit("cuda/group.cuh", "reinterpret_cast<const uint8_t*>(words)[at / kGroup]",
             "reinterpret_cast<const uint8_t*>(words)[at / kGroup + 1]"),
        OVERFLOW,
    ),
    "a tail without its guard": Fault(
        "address", "accumulate_", "accumulate.cu",
        Edit("cuda/table.cuh", "chunk.count - at < kGroup ? chunk.count - at : kGroup", "kGroup"),
        OVERFLOW,
    ),
    "a wide load at any address": Fault(
        "address", "accumulate_", "accumulate.cu",
        Edit("cuda/group.cuh",
             "count == kGroup && reinterpret_cast<uintptr_t>(pointer) % 16 == 0",
             "count == kGroup && pointer != nullptr"),
        "runtime error: .* misaligned address",
    ),
    "a ballot that some lanes miss": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/select.cu", "__ballot_sync(kAllLanes, bit(ties, digit) != 0)",
             "ties == 0 ? 0 : __ballot_sync(kAllLanes, bit(ties, digit) != 0)"),
        r"cuda_on_cpu: deadlock: .* waits in __ballot_sync .*select\.cu",
    ),
    "a shuffle that some lanes miss": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/ties.cuh", "before += warp_sum(lane <=",
             "if (lane <= last) before += warp_sum(lane <="),
        r"cuda_on_cpu: deadlock: .* waits in __shfl_sync or its kin .*(ties|warp)\.cuh",
    ),
    "a look-back that does not wait": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/ties.cuh", "while (seen == 0) seen =", "seen ="),
        "select differs from the reference",
        order="7", workers=4,
    ),
    "a count that is never published": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/ties.cuh", "if (lane == 0) publish(&status[chunk], own, chunk == 0",
             "if (lane == 0 && chunk > 3) publish(&status[chunk], own, chunk == 0"),
        "cuda_on_cpu: livelock: .* keeps repeating atomic operations",
    ),
    "chunks handed out in no order": Fault(
        "plain", "select", "select.cu",
        Edit("cuda/select.cu",
             "int64_t index = next_chunk(selection); index < table.chunks; "
             "index = next_chunk(selection)",
             "int64_t index = blockIdx.x; index < table.chunks; "
             "__syncthreads(), index += gridDim.x"),
        "cuda_on_cpu: livelock: .* keeps repeating atomic operations",
    ),
    "counts that are not cleared": Fault(
        "address", "select", "select.cu",
        Edit("cuda/threshold.cuh", "cudaMemsetAsync(counts, 0, size_t(bins)",
             "cudaMemsetAsync(counts, 0, size_t(0 * bins)"),
        "select differs from the reference",
    ),
    "a frozen weight that moves": Fault(
        "plain", "masked_adam_", "masked_adam.cu",
        Edit("cuda/masked_step.cuh", "if (bit(moving, i) == 0) continue;", ""),
        "masked_adam_ differs from the reference",
    ),
    "a count that lanes without weights miss": Fault(
        "plain", "compact_state", "masked_sgd.cu",
        Edit("cuda/masked_step.cuh", "const int64_t place = chunk.begin + at;",
             "const int64_t place = chunk.begin + at;\n      if (count == 0) continue;"),
        r"cuda_on_cpu: deadlock: .* waits in __shfl_sync or its kin .*warp\.cuh",
    ),
    "random bits by the place in a chunk": Fault(
        "plain", "half_precision", "masked_adam.cu",
        Edit("cuda/masked_step.cuh", "slot_.origin + uint64_t(at + i)",
             "slot_.origin + uint64_t(i)"),
        "half_precision differs from the reference",
    ),
    "two threads that share a group": Fault(
        "thread", "soft_threshold_", "soft_threshold.cu",
        Edit("cuda/table.cuh", "int at = int(threadIdx.x) * kGroup;",
             "int at = int(threadIdx.x / 2) * kGroup;"),
        RACE + "shrink",
    ),
}  # fmt: skip

Done = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def _exercise(
    kind: str, *ops: str, edits: tuple[Edit, ...] = (), seen_by: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    library = build.library(kind, edits, seen_by)
    script = [sys.executable, "-m", "tests.cuda_on_cpu.exercise", str(library), *ops]
    return subprocess.run(
        build.command(kind, *script),
        env=build.python_environment(kind, **environment),
        cwd=build.ROOT, timeout=200,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


def _with(fault: Fault) -> subprocess.CompletedProcess[str]:
    # Only where a livelock is planted is a slow launch one: others are slow on a busy machine.
    patience = {"CUDA_ON_CPU_SECONDS": "1"} if "livelock" in fault.report else {}
    return _exercise(
        fault.kind, fault.op, edits=(fault.edit,), seen_by=fault.seen_by,
        CUDA_ON_CPU_ORDER=fault.order, CUDA_ON_CPU_WORKERS=str(fault.workers), **patience,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done() -> Iterator[Done]:
    """As many at a time as there are cores; the clean objects, which all share, come first."""
    able = {name: fault for name, fault in FAULTS.items() if not build.unavailable(fault.kind)}
    for kind in {fault.kind for fault in able.values()}:
        build.library(kind)
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield {name: pool.submit(_with, fault) for name, fault in able.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_told(done, name):
    if name not in done:
        pytest.skip(build.unavailable(FAULTS[name].kind))
    run = done[name].result()
    assert run.returncode != 0, f"went unnoticed: {run.stdout[-2000:]}"
    assert re.search(FAULTS[name].report, run.stdout), run.stdout[-4000:]


@pytest.mark.parametrize("kind", build.KINDS)
def test_without_a_fault_nothing_is_told(kind):
    if reason := build.unavailable(kind):
        pytest.skip(reason)
    run = _exercise(kind)
    assert (run.returncode, run.stdout) == (0, "all the same\n")
