"""One clear red line for whatever goes wrong; tracebacks only with --debug."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130
INTERNAL = (RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


class PlainErrors(TyperGroup):
    """The root of the commands. What a user can mend (wrong values, files, missing packages)
    exits with 2, anything else with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn  # type: ignore[assignment]
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("stopped; run it again (train and unlearn: with --resume) to go on where it was")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, TypeError, OSError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            _say(_one_line(error))
            raise typer.Exit(USER_ERROR) from None
        except INTERNAL as error:
            if ctx.params.get("debug") or _is_flow(error):
                raise
            _say(f"{type(error).__name__}: {_one_line(error)} (salun-fast --debug ... shows where)")
            raise typer.Exit(INTERNAL_ERROR) from None


def _warn(message: Warning | str, *_: Any) -> None:
    """One yellow line, without the source that Python shows."""
    _print(f"warning: {' '.join(str(message).split())}", "yellow")


def _is_flow(error: Exception) -> bool:
    """typer.Exit and typer.Abort are RuntimeErrors that mean no error."""
    return isinstance(error, (typer.Exit, typer.Abort))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(message: str) -> None:
    _print(f"error: {message}", "bold red")


def _print(line: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(line, style=style))
