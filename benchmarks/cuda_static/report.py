"""The report in Markdown. Everything but its head follows from the library alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cuda_static import estimate, footprint, kernels, sequences
from benchmarks.cuda_static.kernels import Kernel
from benchmarks.cuda_static.occupancy import BLOCK, MULTIPROCESSORS, occupancy
from salun_fast import _load

_INTRODUCTION = """\
What the compiler made of the kernels that `pip install` builds, read from the installed library,
and what follows from it on paper. **No GPU was involved: the times below are estimates.** For
measured ones run `python -m benchmarks --device cuda` on a GPU."""

_KERNELS = """\
Each figure for A100 (`sm_80`) / H100 (`sm_90`). `masked_step` names its rule (`AdamRule<true>` is
amsgrad), the format of weights, that of gradients, and where state lies: compact state moves one
by one, for its groups begin anywhere. `careful_step` is the same with masters or
stochastic rounding. Spills: instructions that touch thread-local
memory, plus bytes of stack. Wide: 128-bit loads + stores of device memory in the code of one group
of eight weights; every array of weights, gradients, scores and state goes that way where its
pointer is aligned to 16 bytes, and by as many narrow accesses as it has elements at ragged ends
and odd addresses. The mask is read as one byte per eight weights: 32 neighbouring bytes per warp.
Occupancy: of a multiprocessor's {threads:,} threads, in blocks of {block}. Code: size of the
kernel's instructions, all variants and ragged ends included; a run executes a fraction of it."""

_FOOTPRINTS = """\
Least: every input read once and every result written once. Selection reads the scores three times
to find the exact threshold and once more to apply it: it keeps no copy and sorts nothing."""

_TIMES = """\
Density 0.5, fp32, tensors of equal size. The ways are those that `python -m benchmarks --device
cuda` measures, run here on tensors without memory: every operator is counted
(`benchmarks/cuda_static/traffic.py`), ours too, with the largest number of launches that
`tests/cuda_on_cpu/test_launches.py` allows. Left out: torch's kthvalue and topk, whose kernels read
their input an unknown number of times."""


def write(library: Path) -> str:
    """The report on a compiled library; takes half a minute."""
    return "\n\n".join(
        [
            "# The CUDA kernels on paper",
            f"`python -m benchmarks.cuda_static`, {time.strftime('%Y-%m-%d')}",
            _INTRODUCTION,
            f"{built_with()}; read with cuobjdump {kernels.tool_version()}.",
            "## Kernels",
            _KERNELS.format(threads=MULTIPROCESSORS["sm_90"].threads, block=BLOCK),
            kernel_table([kernels.read(library, name) for name in MULTIPROCESSORS]),
            "## Memory per weight",
            _FOOTPRINTS,
            footprint_table(),
            "## Expected times on an H100: an estimate",
            _TIMES,
            time_table(),
            "Assumed:",
            assumption_table(),
        ]
    ) + "\n"  # fmt: skip


def built_with() -> str:
    """What compiled the library: the kernels' figures follow from it."""
    build = _load.status().build
    return f"Built with CUDA {build['cuda_toolkit']} for {build['cuda_architectures']}"


def kernel_table(by_architecture: Sequence[Sequence[Kernel]]) -> str:
    """One row per kernel; a figure per architecture, or one where they agree."""
    rows = []
    for same in zip(*by_architecture, strict=True):
        rows.append(
            (
                f"`{same[0].name}`",
                _each(str(k.registers) for k in same),
                _each(str(k.spills + k.stack + k.local) for k in same),
                _each(f"{k.shared:,}" for k in same),
                _each(f"{occupancy(k):.0%}" for k in same),
                _each(f"{k.loads(128)} + {k.stores(128)}" for k in same),
                _each(f"{k.instructions * 16 / 1024:.1f}" for k in same),
            )
        )
    head = ("kernel", "registers", "spills", "shared bytes", "occupancy", "wide", "code KiB")
    return _table(head, rows)


def footprint_table() -> str:
    rows = [
        (f.op, f.dtype, f"{f.moved:g}", f"{f.least:g}", f"{f.moved / f.least:.2f}x")
        for f in footprint.footprints()
    ]
    return _table(("op", "weights", "bytes moved", "least", "moved / least"), rows)


def time_table() -> str:
    rows = []
    gpu = estimate.Gpu()
    for model in sequences.MODELS:
        name = f"{model.name}, {model.numel:,} weights in {model.tensors} tensors"
        ours = 0.0
        for way in sequences.ways(model):
            seconds = estimate.seconds(way.traffic, gpu)
            own = way.name == "salun-fast"
            ours = seconds if own else ours
            rows.append(
                (
                    name,
                    way.case if own else "",
                    "**salun-fast**" if own else way.name,
                    f"{way.traffic.launches}",
                    f"{way.traffic.moved / 1e9:.2f}",
                    f"{way.traffic.carried / 1e9:.2f}",
                    f"{seconds * 1e3:.3g}",
                    "" if own else f"{seconds / ours:.2g}x",
                )
            )
            name = ""
    head = ("model", "op", "way", "launches", "GB moved", "GB from host", "ms, expected",
            "salun-fast is faster by")  # fmt: skip
    return _table(head, rows)


def assumption_table() -> str:
    return _table(("what", "how much", "why"), estimate.assumptions(estimate.Gpu()))


def _each(figures: Iterable[str]) -> str:
    found = list(figures)
    return found[0] if len(set(found)) == 1 else " / ".join(found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
