"""Arguments that several commands share, and how a configuration comes about from them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from salun_fast import config as configs
from salun_fast.config import Config, RunConfig
from salun_fast.run import RunFolder


def _changes(example: str) -> Any:
    return typer.Argument(
        metavar="[KEY=VALUE]...",
        help=f"Changes to the configuration, e.g. {example}.",
        show_default=False,
    )


Overrides: TypeAlias = Annotated[
    list[str] | None, _changes("data=digits train.epochs=20 unlearn.lr=0.03")
]
DiffusionOverrides: TypeAlias = Annotated[
    list[str] | None, _changes("forget_class=1 unlearn.steps=200 unlearn.density=0.3")
]
ConceptOverrides: TypeAlias = Annotated[
    list[str] | None, _changes("'forget_prompt=a photo of a tench' unlearn.trainable=xattn")
]
TrainOverrides: TypeAlias = Annotated[
    list[str] | None, _changes("data=fashion-mnist unet.sample_size=16 train.steps=5000")
]
DemoOverrides: TypeAlias = Annotated[
    list[str] | None, _changes("'seeds=[1,2,3]' unlearn.steps=200")
]
ConfigFile: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with the configuration.")
]
From: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from", help="Run folder (its configuration and model) or weights file."),
]
FromPipeline: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from", help="Pipeline folder of diffusers, or run folder that holds one."),
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


def resolve_diffusion(
    schema: type[Config],
    overrides: list[str] | None,
    file: Path | None,
    start: Path | None,
    out: RunFolder,
    *,
    resume: bool,
) -> Config:
    """Defaults, or the configuration of the run in ``out`` to resume, or what the run to start
    from says of data and sampling; then the YAML file, then the overrides."""
    base = out.config(schema) if resume and out.exists else schema()
    if start is not None:
        base = _continued(schema, start, base, fresh=not (resume and out.exists))
    return configs.load(overrides or (), file=file, base=base)


def _continued(schema: type[Config], start: Path, base: Config, *, fresh: bool) -> Config:
    from salun_fast.diffusion import pipelines
    from salun_fast.diffusion_config import ConceptConfig, DDPMConfig, DDPMTrainConfig

    known: dict[str, Any] = {}
    folder = RunFolder(start)
    if fresh and folder.exists:
        schemas = (DDPMTrainConfig, DDPMConfig, ConceptConfig)
        found = next((s for s in schemas if folder.command in s.COMMANDS), None)
        if found is not None:
            known = vars(folder.config(found))
    shared = {f.name: known[f.name] for f in fields(schema) if f.name in known}
    return replace(base, **shared | {"pipeline": str(pipelines.found_in(start))})
