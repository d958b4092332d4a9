"""The command line ``salun-fast``: a thin layer over ``salun_fast.workflow`` and friends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from salun_fast.cli.demo import demo, demo_concept, demo_ddpm
from salun_fast.cli.diffusion import train_ddpm, unlearn_concept, unlearn_ddpm
from salun_fast.cli.doctor import doctor
from salun_fast.cli.errors import PlainErrors
from salun_fast.cli.evaluate import evaluate
from salun_fast.cli.kinds import DEFAULT, kinds
from salun_fast.cli.mask import mask_app
from salun_fast.cli.patch import patch_app
from salun_fast.cli.report import report
from salun_fast.cli.runs import saliency, train, unlearn
from salun_fast.cli.sample import sample

ORDER = ("demo", "train", "saliency", "unlearn", "evaluate", "sample", "report")  # then the others


class Root(PlainErrors):
    """All commands, in the order in which one meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        rest = [name for name in super().list_commands(ctx) if name not in ORDER]
        return [*ORDER, *rest]


app = typer.Typer(
    cls=Root,
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


# A new kind of a command is a line here.
_KINDS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "demo": (
        "Compare every method on real data and write the report.",
        {DEFAULT: demo, "ddpm": demo_ddpm, "concept": demo_concept},
    ),
    "train": ("Train the model that is to forget.", {DEFAULT: train, "ddpm": train_ddpm}),
    "unlearn": (
        "Make a model forget, show it before and after, write the report.",
        {DEFAULT: unlearn, "ddpm": unlearn_ddpm, "concept": unlearn_concept},
    ),
}

for _name, (_what, _commands) in _KINDS.items():
    _group = kinds(_what)
    for _kind, _command in _commands.items():
        _group.command(_kind)(_command)
    app.add_typer(_group, name=_name)
for _command in (saliency, evaluate, sample, report, doctor):
    app.command()(_command)
app.add_typer(mask_app, name="mask")
app.add_typer(patch_app, name="patch")
