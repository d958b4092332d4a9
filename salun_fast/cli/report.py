"""``report``: build report.html again, or put runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salun_fast.cli import show


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="A comparison's folder, or run folders to compare.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File; default: in the first folder.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables as Markdown to this file.")
    ] = None,
) -> None:
    """Build report.html from run folders; with a retrain run among them it shows gaps."""
    from salun_fast import files, workflow
    from salun_fast.report.diffusion.source import holds_diffusion

    written = [workflow.rebuild_report(folders, out)]
    tables = _diffusion(folders) if holds_diffusion(folders) else _classifier(folders)
    if markdown is not None:
        files.write_text(markdown, tables)
        written.append(markdown)
    show.written(*written)


def _classifier(folders: list[Path]) -> str:
    """Print the comparison; its tables as Markdown."""
    from salun_fast.report import markdown, read_source

    source = read_source(folders)
    if source.tasks:
        show.comparison(source)
    return markdown(source)


def _diffusion(folders: list[Path]) -> str:
    """Print what was measured on diffusion runs; its tables as Markdown."""
    from salun_fast.report.diffusion.markdown import markdown_of

    return markdown_of(show.diffusion(folders))
