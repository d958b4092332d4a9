"""``python -m benchmarks``: every claim under pytest-benchmark, then tables and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.device import why_not

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.out / f"{options.device.type}.json"
    code = pytest.main([*_for_pytest(options), f"--benchmark-json={source}"])
    if code != 0:
        return int(code)
    for path in report.write(source):
        print(f"wrote {path}")
    return 0


def _for_pytest(options: argparse.Namespace) -> list[str]:
    chosen = [
        str(HERE), f"--rootdir={HERE.parent}", "--benchmark-enable", "--benchmark-disable-gc",
        f"--device={options.device}", f"--scale={options.scale}",
    ]  # fmt: skip
    if options.rounds:
        chosen.append(f"--rounds={options.rounds}")
    if options.skip_slow:
        chosen.append("--skip-slow")
    return [*chosen, *(["-k", options.k] if options.k else [])]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="as many as torch takes by default")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of weights")
    parser.add_argument("--rounds", type=int, help="of every claim; its own number by default")
    parser.add_argument("--skip-slow", action="store_true", help="leave out sorts and kthvalue")
    parser.add_argument("-k", help="some claims only, as pytest's -k takes them")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder")
    options = parser.parse_args(arguments)
    if reason := why_not(options.device):
        parser.error(f"--device {options.device}: {reason}")
    return options


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, found {text}") from error


if __name__ == "__main__":
    sys.exit(main())
