"""``python -m benchmarks.cuda_static``: read the installed CUDA library and write the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.cuda_static import kernels, report
from salun_fast import _load

OUT = Path("benchmarks/results/cuda_static.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_static", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--library", type=Path, help="another libsalun_fast_cuda.so")
    options = parser.parse_args()
    try:
        text = report.write(options.library or installed_library())
    except RuntimeError as error:
        print(f"python -m benchmarks.cuda_static: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    Console().print(f"wrote {options.out}")
    return 0


def installed_library() -> Path:
    """The very file that torch loads."""
    status = _load.status().cuda
    if status.library is None:
        raise kernels.ToolMissing(f"no CUDA library to read: {status.reason}")
    return Path(status.library)


if __name__ == "__main__":
    sys.exit(main())
