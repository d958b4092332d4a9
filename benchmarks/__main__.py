"""All tables in one run: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    bench_accumulate,
    bench_masked_adam,
    bench_masked_sgd,
    bench_optimizer,
    bench_select,
    bench_soft_threshold,
)
from benchmarks.case import Size
from benchmarks.clock import CALLS_PER_EVENT
from benchmarks.device import why_not
from benchmarks.rotation import cache_of, rotating, sets_of
from benchmarks.table import Ceiling, Row, markdown, measure, milliseconds
from salun_fast import machine

CASES = (
    bench_accumulate.case,
    bench_masked_sgd.case,
    bench_masked_adam.case,
    bench_select.case,
    *bench_select.FAMILY_CASES,
    bench_soft_threshold.case,
    bench_optimizer.case,
    bench_optimizer.adamw_case,
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    size = Size(options.numel, options.tensors, options.device)
    ceiling = Ceiling(size)
    rows: list[Row] = []
    console = Console()
    for make in CASES:
        console.print(f"measuring {make.__module__.removeprefix('benchmarks.bench_')} …")
        rows += measure(rotating(make, size), ceiling, options.rounds, options.skip_slow)
        gc.collect()
    notes = _notes(options, size, ceiling)
    console.print(_table(rows))
    for note in notes:
        console.print(note, soft_wrap=True)
    _write(options.out, options.device, rows, notes)
    console.print(f"wrote {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--numel", type=int, default=100_000_000, help="weights per op")
    parser.add_argument("--tensors", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-slow", action="store_true", help="leave out sorts and kthvalue")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>_ops.md")
    options = parser.parse_args()
    if reason := why_not(options.device):
        parser.error(f"--device {options.device}: {reason}")
    if options.out is None:
        options.out = Path(f"benchmarks/results/{options.device.type}_ops.md")
    return options


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, found {text}") from error


def _notes(options: argparse.Namespace, size: Size, ceiling: Ceiling) -> list[str]:
    add = min(ceiling.clock(ceiling.call) for _ in range(5))
    return [
        f"{size.numel:,} fp32 weights in {size.tensors} tensors (the optimizer rows: ResNet-18's "
        f"own), {options.threads} threads, medians of {options.rounds} rounds; ways marked with a "
        "target of 15x or more, topk and the soft threshold's peer were timed once.",
        *_gpu_notes(size),
        f"Ceiling: `a.add_(b)`, {ceiling.bandwidth(add) / 1e9:.0f} GB/s at best in this run; "
        "the shares use the medians measured beside each op.",
        bench_select.memory_note(size),
    ]


def _gpu_notes(size: Size) -> list[str]:
    if size.device.type == "cpu":
        return []
    return [
        f"Each time is that of {CALLS_PER_EVENT} calls between two CUDA events, divided: the "
        "device's time, or the host's where the host asks more slowly than the device works. "
        f"Calls go in turn through {sets_of(size.numel, size.device)} sets of inputs or more, "
        f"beyond the {cache_of(size.device) / 2**20:.0f} MiB of second-level cache."
    ]


def _table(rows: list[Row]) -> Table:
    table = Table("op", "way", "ms", "faster by", "share of ceiling", "target")
    for row in rows:
        own = row.way == "salun-fast"
        table.add_row(
            row.case if own else "",
            "[bold]salun-fast[/bold]" if own else row.way,
            milliseconds(row),
            "" if own else f"{row.ratio:.2f}x",
            "" if row.share is None else f"{row.share:.0%}",
            row.target,
        )
    return table


def _write(path: Path, device: torch.device, rows: list[Row], notes: list[str]) -> None:
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.facts(device).items())
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    text = (
        f"# {device.type.upper()} ops\n\n`{command}`, {time.strftime('%Y-%m-%d')}\n\n"
        + "\n\n".join([markdown(rows), *notes])
        + f"\n\n## Machine\n\n{facts}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
