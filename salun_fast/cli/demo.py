"""``demo classifier``, ``demo ddpm``, ``demo concept``: whole comparisons on real data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from salun_fast.cli import show
from salun_fast.cli.options import DemoOverrides, Overrides

if TYPE_CHECKING:
    from salun_fast.experiment.log import OnRecord

Out: TypeAlias = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder; default runs/demo-NAME.")
]
Train: TypeAlias = Annotated[
    bool, typer.Option("--train", help="Train the models first instead of taking the shipped ones.")
]


def demo(
    overrides: Overrides = None,
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    out: Out = None,
) -> None:
    """Compare every method on real images and write the report.

    Run it again to go on after a stop. KEY=VALUE changes the comparison: seeds=[0] train.epochs=3
    device=cuda.
    """
    from salun_fast.demo import demo_settings, run_demo
    from salun_fast.report import read_source

    settings = demo_settings(data, overrides or ())
    folder = out if out is not None else Path("runs") / f"demo-{data}"
    with _following(f"{data}: training the original model") as on_record:
        report = run_demo(settings, folder, command=_command_line(), on_record=on_record)
    show.comparison(read_source([folder]))
    show.written(folder / "table.md", report)


def demo_ddpm(
    overrides: DemoOverrides = None,
    data: Annotated[
        str | None,
        typer.Option(help="fashion-mnist or digits; default: the first that is found."),
    ] = None,
    out: Out = None,
    train: Train = False,
) -> None:
    """Make a small diffusion model forget a class, by every method, and write the report.

    Run it again to go on after a stop. classes=[1,0] forgets other classes as well.
    """
    from salun_fast.demo.diffusion import available_data, ddpm_demo

    chosen = data if data is not None else available_data()
    folder = out if out is not None else Path("runs") / f"demo-ddpm-{chosen}"
    show.console().print(f"data: {chosen}")
    _diffusion(ddpm_demo(chosen, folder, overrides or (), train=train), folder)


def demo_concept(overrides: DemoOverrides = None, out: Out = None, train: Train = False) -> None:
    """Make a small text-to-image pipeline forget an object and a style, by prompt.

    Run it again to go on after a stop. styles=[] leaves the styles out.
    """
    from salun_fast.demo.diffusion import concept_demo

    folder = out if out is not None else Path("runs") / "demo-concept"
    _diffusion(concept_demo(folder, overrides or (), train=train), folder)


def _diffusion(settings: Any, folder: Path) -> None:
    from salun_fast.demo.diffusion import run_diffusion_demo

    with _following("loading the models") as on_record:
        report = run_diffusion_demo(settings, folder, command=_command_line(), on_record=on_record)
    show.diffusion([folder])
    show.written(folder / "table.md", report)


@contextmanager
def _following(first: str) -> Iterator[OnRecord]:
    """A bar over the jobs; in a log file a line per job."""
    with show.job_progress() as progress:
        bar = progress.add_task(first, total=None)

        def on_record(record: dict[str, Any], done: int, total: int) -> None:
            words = " ".join(
                str(p) for p in (record["kind"], record["task"], record["method"]) if p
            )
            if not progress.console.is_terminal:
                progress.console.print(f"{done}/{total} {words}, seed {record['seed']}")
            progress.update(
                bar, completed=done, total=total, description=f"{words}, seed {record['seed']}"
            )

        yield on_record


def _command_line() -> str:
    return shlex.join(["salun-fast", *sys.argv[1:]])
