"""bf16 weights in the three ways of ``half_precision``: what becomes of small updates, and what a
masked AdamW step costs. ``python -m benchmarks.half_precision``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.case import Case, Peer, Size
from benchmarks.report import Cell, Record, table
from benchmarks.trial import Ceiling, measure
from salun_fast import SalUnOptimizer, machine, ops

MODES = ("nearest", "stochastic", "master")
# fp32 gradients of bf16 weights are rare: gradients are bf16. Read gradient, weight, moments and
# bits; write weight and moments. A master is read and written too.
BYTES = {"nearest": 22.125, "stochastic": 22.125, "master": 30.125}
KEPT = {"nearest": 10, "stochastic": 10, "master": 14}  # weight, moments, master


def drift(steps: int, lr: float = 1e-4, weights: int = 4096) -> dict[str, float]:
    """Mean of weights of 1.0 after ``steps`` SGD steps of ``lr`` down; an ulp below 1 is 2^-8."""
    found = {}
    for mode in ("fp32", *MODES):
        dtype = torch.float32 if mode == "fp32" else torch.bfloat16
        weight = nn.Parameter(torch.ones(weights, dtype=dtype))
        half = "nearest" if mode == "fp32" else mode
        optimizer = SalUnOptimizer([weight], torch.optim.SGD, lr=lr, half_precision=half)
        weight.grad = torch.ones_like(weight)
        for _ in range(steps):
            optimizer.step()
        found[mode] = float(weight.detach().double().mean())
    return found


def case(size: Size) -> Case:
    """The same masked step in every mode; "nearest" is what the others are compared with."""
    calls = {mode: step(size, mode) for mode in MODES}
    return Case(
        "masked_adam_ (AdamW), bf16, nearest",
        calls["nearest"],
        "fp32 moments",
        [Peer(mode, calls[mode]) for mode in MODES[1:]],
        size.numel,
        bytes=BYTES["nearest"],
    )


def step(size: Size, mode: str) -> Callable[[], None]:
    params, grads = size.rand(1), size.rand(2)
    moments, squares, steps = size.zeros(), size.zeros(), size.steps()
    masks, _ = ops.select(grads, size.numel // 2)
    half: dict[str, Any] = {}
    if mode == "stochastic":
        half = {"origins": [size.each * i for i in range(size.tensors)], "rounding_seed": 0}
    elif mode == "master":
        half = {"masters": [param.float() for param in params]}
    return lambda: ops.masked_adam_(
        params, grads, moments, squares, [], steps, masks,
        lr=1e-4, weight_decay=1e-2, decoupled=True, **half,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half_precision")
    parser.add_argument("--numel", type=int, default=50_000_000)
    parser.add_argument("--steps", type=int, default=2000, help="of the run that drifts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/half_precision.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    size = Size(chosen.numel, 50, dtype=torch.bfloat16)
    measured = case(size)
    record = Record("", "", measured.name, Cell.of(size), measure(measured, Ceiling(), rounds=7))
    text = report(drift(chosen.steps), chosen.steps, table([record]), size)
    chosen.out.write_text(text, encoding="utf-8")
    print(text)


def report(found: dict[str, float], steps: int, table: str, size: Size) -> str:
    lines = "\n".join(
        f"| {mode} | {value:.4f} | {KEPT.get(mode, 12)} | {BYTES.get(mode, 28.125):g} |"
        for mode, value in found.items()
    )
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.facts().items())
    return f"""# Half precision

`python -m benchmarks.half_precision`, {time.strftime("%Y-%m-%d")}

4,096 weights of 1.0 and {steps:,} SGD steps of 1e-4 down. Below 1 bf16 numbers are 2^-8 apart, so
that each step is a fortieth of what nearest rounding sees. Bytes per weight as AdamW keeps and
moves them, with bf16 gradients; fp32 beside them.

| weights | mean in the end | bytes kept | bytes moved a step |
|---|---:|---:|---:|
{lines}

{size.numel:,} bf16 weights in {size.tensors} tensors, density 0.5, 2 threads, medians of 7 rounds.

{table}

## Machine

{facts}
"""


if __name__ == "__main__":
    main()
