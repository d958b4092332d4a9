"""``demo``: the whole comparison on real images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from salun_fast.cli import show
from salun_fast.cli.options import Overrides


def demo(
    overrides: Overrides = None,
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default runs/demo-DATA.")
    ] = None,
) -> None:
    """Compare every method on real images and write the report.

    Run it again to go on after a stop. KEY=VALUE changes the comparison: seeds=[0] train.epochs=3.
    """
    from salun_fast.demo import demo_settings, run_demo
    from salun_fast.report import read_source

    settings = demo_settings(data, overrides or ())
    folder = out if out is not None else Path("runs") / f"demo-{data}"
    with show.job_progress() as progress:
        bar = progress.add_task(f"{data}: training the original model", total=None)

        def on_record(record: dict[str, Any], done: int, total: int) -> None:
            words = " ".join(
                str(p) for p in (record["kind"], record["task"], record["method"]) if p
            )
            if not progress.console.is_terminal:  # a log file gets a line per job
                progress.console.print(f"{done}/{total} {words}, seed {record['seed']}")
            progress.update(
                bar, completed=done, total=total, description=f"{words}, seed {record['seed']}"
            )

        report = run_demo(settings, folder, command=_command_line(), on_record=on_record)
    show.comparison(read_source([folder]))
    show.written(folder / "table.md", report)


def _command_line() -> str:
    return shlex.join(["salun-fast", *sys.argv[1:]])
