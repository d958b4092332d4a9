"""``python -m benchmarks.sd_scale``: measure every phase and write the table."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.sd_scale import cost, ours, report, theirs
from benchmarks.sd_scale.meter import Measured
from benchmarks.sd_scale.unet import SD1, SD1_TENSORS, SD1_WEIGHTS, Settings, shapes_of
from salun_fast import files

Part = Callable[[Settings], Measured]
Apart = Callable[[Part, Settings], Measured]
Shapes = Mapping[str, torch.Size]
OUT = Path("benchmarks/results/sd_scale.md")
_SPARE = 2e9  # bytes for libraries, activations and gradients in the making


class OutOfMemory(RuntimeError):
    """The system ended a measuring process."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    settings = Settings(
        SD1,
        options.dtype,
        options.latents,
        options.batch,
        threads=options.threads,
        reference_weights=options.reference_weights,
    )
    shapes = shapes_of(settings.config)
    weights = numel(shapes)
    if (weights, len(shapes)) != (SD1_WEIGHTS, SD1_TENSORS):
        raise RuntimeError(
            f"expected {SD1_WEIGHTS:,} weights in {SD1_TENSORS} tensors, found {weights:,} in "
            f"{len(shapes)}: this diffusers builds another network from Stable Diffusion's config"
        )
    if problem := too_little_memory(settings, shapes, available_memory()):
        print(f"python -m benchmarks.sd_scale: {problem}", file=sys.stderr)
        return 2
    command = " ".join(["python -m benchmarks.sd_scale", *(arguments or sys.argv[1:])])
    text = measure(settings, shapes, command, in_fresh_process)
    files.write_text(options.out, text)
    Console().print(f"wrote {options.out}")
    return 0


def measure(settings: Settings, shapes: Shapes, command: str, apart: Apart) -> str:
    """The text of the result file; ``apart(part, settings)`` runs a part of the work."""
    load = os.getloadavg()[0]
    own = apart(ours.run, settings)
    parts = (theirs.saliency, theirs.masks, theirs.steps)
    other = [row for part in parts for row in apart(part, settings).rows]
    facts = report.Facts(settings, shapes, numel(shapes), own.libraries, load)
    Console().print(report.screen(report.lines(own.rows, other, facts.weights)))
    return report.markdown(facts, own.rows, other, command)


def in_fresh_process(part: Part, settings: Settings) -> Measured:
    """So that no part's peak holds what another left behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(part, settings).result()
        except BrokenProcessPool as error:
            raise OutOfMemory(
                f"the process that measured {part.__module__}.{part.__name__} was ended, most "
                "likely for want of memory; free some or lower --reference-weights"
            ) from error


def too_little_memory(settings: Settings, shapes: Shapes, available: float) -> str:
    """What is missing, and what to do; empty where all parts fit."""
    own = cost.ours(shapes, getattr(torch, settings.dtype))
    whole, part = cost.reference(numel(shapes)), cost.reference(settings.reference_weights)
    most = {
        "salun-fast's step": own["step"].held,
        "the reference's saliency": whole["saliency"].held,
        "the reference's sorting": part["mask"].held,
    }
    name, size = max(most.items(), key=lambda item: item[1])
    if size + _SPARE <= available:
        return ""
    return (
        f"{name} needs {(size + _SPARE) / 1e9:.1f} GB of memory, found {available / 1e9:.1f} free; "
        "end other programs, lower --reference-weights or pass --dtype bfloat16"
    )


def available_memory() -> float:
    """Bytes; infinite where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))


def numel(shapes: Shapes) -> int:
    return sum(shape.numel() for shape in shapes.values())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd_scale", description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--latents", type=int, default=16, help="height and width")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--reference-weights", type=int, default=200_000_000, help="where all do not fit"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
