"""``python -m benchmarks.soak``: run every way for long and write the table; 1 if one grows."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.soak import report
from benchmarks.soak.watch import Growth, Sample
from benchmarks.soak.work import COMPILED, EAGER, Plan, Way, run
from salun_fast import files

OUT = Path("benchmarks/results/soak.md")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    plan, found = Plan(steps=options.steps), {}
    for way in EAGER if options.no_compile else (*EAGER, COMPILED):
        found[way] = in_fresh_process(way, plan)
        Console().print("  ".join(report.line(way, found[way])), soft_wrap=True)
    command = " ".join(["python -m benchmarks.soak", *(arguments or sys.argv[1:])])
    files.write_text(options.out, report.markdown(found, plan, command))
    Console().print(f"wrote {options.out}")
    return 0 if all(Growth.over(samples).flat for samples in found.values()) else 1


def in_fresh_process(way: Way, plan: Plan) -> list[Sample]:
    """So that no way's memory holds what another left behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return pool.submit(run, way, plan).result()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled step out")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if options.steps < 2 * Plan().warm:
        parser.error(f"--steps must be at least {2 * Plan().warm:,}, found {options.steps:,}")
    return options


if __name__ == "__main__":
    sys.exit(main())
