"""The command line ``salun-fast``: a thin layer over ``salun_fast.workflow`` and friends."""

from __future__ import annotations

from typing import Annotated

import typer

from salun_fast.cli.demo import demo
from salun_fast.cli.doctor import doctor
from salun_fast.cli.errors import PlainErrors
from salun_fast.cli.mask import mask_app
from salun_fast.cli.patch import patch_app
from salun_fast.cli.report import report
from salun_fast.cli.runs import evaluate, saliency, train, unlearn

app = typer.Typer(
    cls=PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Machine unlearning by weight saliency: train, unlearn, evaluate, report."""


for _command in (demo, train, saliency, unlearn, evaluate, report, doctor):
    app.command()(_command)
app.add_typer(mask_app, name="mask")
app.add_typer(patch_app, name="patch")
