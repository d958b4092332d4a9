"""A command in several kinds: ``unlearn ddpm``, and ``unlearn`` alone for classifiers."""

from __future__ import annotations

import difflib
from typing import Any

import typer
from typer.core import TyperGroup

DEFAULT = "classifier"


class Kinds(TyperGroup):
    """A group whose first argument, where it names no kind, belongs to the classifier's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first in self.commands or first == "--help":
            return super().parse_args(ctx, args)
        if first and "=" not in first and not first.startswith("-"):
            raise ValueError(self._unknown(first))
        return super().parse_args(ctx, [DEFAULT, *args])

    def _unknown(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.commands, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected {', '.join(self.commands)} or key=value, found {word!r}{meant}"


def kinds(what: str) -> typer.Typer:
    """A group for one command; what: what it does to every kind of model."""
    return typer.Typer(
        cls=Kinds,
        help=f"{what} Without a kind: {DEFAULT}, see {DEFAULT} --help.",
        subcommand_metavar="[KIND] ...",
    )
