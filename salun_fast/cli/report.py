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
    from salun_fast.report import markdown as as_markdown
    from salun_fast.report import read_source

    source = read_source(folders)
    written = [workflow.rebuild_report(folders, out)]
    if markdown is not None:
        files.write_text(markdown, as_markdown(source))
        written.append(markdown)
    if source.tasks:
        show.comparison(source)
    show.written(*written)
