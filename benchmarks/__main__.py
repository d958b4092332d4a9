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
from benchmarks.table import ADD_BYTES, Ceiling, Row, markdown, measure, timed
from salun_fast import machine

CASES = (
    bench_accumulate.case,
    bench_masked_sgd.case,
    bench_masked_adam.case,
    bench_select.case,
    bench_soft_threshold.case,
    bench_optimizer.case,
    bench_optimizer.adamw_case,
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    size = Size(options.numel, options.tensors)
    ceiling = Ceiling(size)
    rows: list[Row] = []
    console = Console()
    for make in CASES:
        console.print(f"measuring {make.__module__.removeprefix('benchmarks.bench_')} …")
        rows += measure(make(size), ceiling, options.rounds, options.skip_slow)
        gc.collect()
    add = min(timed(ceiling.call) for _ in range(5))
    notes = [
        f"{size.numel:,} fp32 weights in {size.tensors} tensors (the optimizer rows: ResNet-18's "
        f"own), {options.threads} threads, medians of {options.rounds} rounds; ways marked with a "
        "target of 15x or more, topk and the soft threshold's peer were timed once.",
        f"Ceiling: `a.add_(b)`, {ADD_BYTES * size.numel / add / 1e9:.0f} GB/s at best in this run; "
        "the shares use the medians measured beside each op.",
        bench_select.memory_note(size),
    ]
    console.print(_table(rows))
    for note in notes:
        console.print(note, soft_wrap=True)
    _write(options.out, rows, notes)
    console.print(f"wrote {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--numel", type=int, default=100_000_000, help="weights per op")
    parser.add_argument("--tensors", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-slow", action="store_true", help="leave out sorts and kthvalue")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_ops.md"))
    return parser.parse_args()


def _table(rows: list[Row]) -> Table:
    table = Table("op", "way", "ms", "faster by", "share of ceiling", "target")
    for row in rows:
        own = row.way == "salun-fast"
        table.add_row(
            row.case if own else "",
            "[bold]salun-fast[/bold]" if own else row.way,
            f"{row.milliseconds:,.1f}",
            "" if own else f"{row.ratio:.2f}x",
            "" if row.share is None else f"{row.share:.0%}",
            row.target,
        )
    return table


def _write(path: Path, rows: list[Row], notes: list[str]) -> None:
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.facts().items())
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    text = (
        f"# CPU ops\n\n`{command}`, {time.strftime('%Y-%m-%d')}\n\n{markdown(rows)}\n\n"
        + "\n\n".join(notes)
        + f"\n\n## Machine\n\n{facts}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
