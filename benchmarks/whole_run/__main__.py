"""``python -m benchmarks.whole_run``: run every way, compare, write the table and the plot."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.sd_scale.meter import Measured
from benchmarks.whole_run import agreement, ours, plot, report, subject, theirs, variants
from benchmarks.whole_run.phases import REFERENCE, size_of
from benchmarks.whole_run.report import Findings
from benchmarks.whole_run.subject import QUICK, Settings
from salun_fast import files

Apart = Callable[..., Any]
OUT = Path("benchmarks/results/whole_run.md")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    command = " ".join(["python -m benchmarks.whole_run", *(arguments or sys.argv[1:])])
    with tempfile.TemporaryDirectory() as folder:
        changes = QUICK if options.quick else {}
        settings = Settings(Path(folder), threads=options.threads, **changes)
        write(settings, options.out, command, in_fresh_process)
    Console().print(f"wrote {options.out}")
    return 0


def write(settings: Settings, out: Path, command: str, apart: Apart) -> Findings:
    """The result file and, beside it, its plot."""
    found = measure(settings, apart)
    picture = out.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot.draw(found.ways, _files(found), picture)
    files.write_text(out, report.markdown(settings, found, command, picture.name))
    return found


def measure(settings: Settings, apart: Apart) -> Findings:
    """``apart(part, settings, ...)`` runs a part of the work."""
    load = os.getloadavg()[0]
    apart(subject.train, settings)
    measured: dict[str, Measured] = {REFERENCE: apart(theirs.run, settings)}
    measured |= {way: apart(ours.run, settings, way) for way in ours.WAYS}
    return Findings(
        ways={way: each.rows for way, each in measured.items()},
        disk={way: size_of(settings.masks(way)) for way in measured},
        one={way: _own_mask(settings, way) for way in measured},
        agreements=[apart(agreement.compare, settings, way) for way in measured],
        variants=[apart(variants.run, settings, name) for name in variants.names(settings)],
        shares=apart(variants.shares, settings),
        readout=apart(variants.readout, settings),
        libraries=measured[REFERENCE].libraries,
        load=load,
    )


def in_fresh_process(part: Callable[..., Any], *arguments: Any) -> Any:
    """So that no part's peak holds what another left behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(part, *arguments).result()


def _own_mask(settings: Settings, way: str) -> int:
    return next(settings.masks(way).glob(f"{settings.density}.*")).stat().st_size


def _files(found: Findings) -> dict[str, int]:
    """Bytes that each way must write: ten masks the reference, one we."""
    return {way: (found.disk if way == REFERENCE else found.one)[way] for way in found.ways}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
