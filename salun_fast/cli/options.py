"""Arguments that several commands share, and how a configuration comes about from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from salun_fast import config as configs
from salun_fast.config import RunConfig
from salun_fast.run import RunFolder

Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the configuration, e.g. data=digits train.epochs=20 unlearn.lr=0.03.",
        show_default=False,
    ),
]
ConfigFile: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with the configuration.")
]
From: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from", help="Run folder (its configuration and model) or weights file."),
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")
]


def resolve(
    overrides: list[str] | None,
    file: Path | None,
    start: Path | None,
    *,
    resume: RunFolder | None = None,
) -> RunConfig:
    """Defaults, or the configuration of the run to resume or to start from; then the YAML file,
    then the overrides."""
    base = None
    if resume is not None and resume.exists:
        base = resume.config()
    if start is not None:
        base = _started_from(start, base)
    return configs.load(overrides or (), file=file, base=base)


def _started_from(start: Path, base: RunConfig | None) -> RunConfig:
    if start.is_file():
        return replace(base if base is not None else RunConfig(), weights=str(start))
    folder = RunFolder(start)
    found = base if base is not None else folder.config()
    if not folder.model_file.is_file():
        raise FileNotFoundError(
            f"{start} holds no model.safetensors: its run is not finished, or is no run folder"
        )
    return replace(found, weights=str(folder.model_file))
