"""``evaluate``: the numbers of a finished run, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salun_fast import config as configs
from salun_fast.cli import show
from salun_fast.cli.options import ConfigFile, Overrides, resolve

if TYPE_CHECKING:
    from salun_fast.run import RunFolder


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or weights file with --config.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    retrain: Annotated[
        Path | None,
        typer.Option(help="Run folder of the retrained model, for the gaps; not for prompts."),
    ] = None,
) -> None:
    """UA, RA, TA and MIA of a classifier; UA, RA and distance, or CLIP scores, of a pipeline.

    A class-conditional pipeline needs judge=RUN_FOLDER of salun-fast train, a text-to-image one
    clip_model=FOLDER, unless the run had them.
    """
    from salun_fast.diffusion_config import ConceptConfig, DDPMConfig
    from salun_fast.run import RunFolder

    folder = RunFolder(run)
    command = folder.command if folder.exists else ""
    if command in DDPMConfig.COMMANDS:
        _ddpm(folder, overrides, config, retrain)
    elif command in ConceptConfig.COMMANDS:
        _concept(folder, overrides, config, retrain)
    else:
        _classifier(run, overrides, config, retrain)


def _classifier(
    run: Path, overrides: list[str] | None, config: Path | None, retrain: Path | None
) -> None:
    from salun_fast import workflow

    runs = {str(run): resolve(overrides, config, run)}
    if retrain is not None:
        runs[str(retrain)] = resolve(overrides, config, retrain)
        workflow.check_same_split(runs[str(run)], runs[str(retrain)])
    measured = {name: workflow.evaluate(found) for name, found in runs.items()}
    show.metrics(measured, yardstick=None if retrain is None else str(retrain))


def _ddpm(
    folder: RunFolder, overrides: list[str] | None, config: Path | None, retrain: Path | None
) -> None:
    from salun_fast.diffusion_config import DDPMConfig
    from salun_fast.diffusion_workflow import evaluate_ddpm

    resolved = configs.load(overrides or (), file=config, base=folder.config(DDPMConfig))
    measured = evaluate_ddpm(resolved, folder, retrained=retrain)
    show.generated({method: found.as_dict() for method, found in measured.items()})


def _concept(
    folder: RunFolder, overrides: list[str] | None, config: Path | None, retrain: Path | None
) -> None:
    from salun_fast.diffusion_config import ConceptConfig
    from salun_fast.diffusion_workflow import evaluate_concept

    if retrain is not None:
        raise ValueError("--retrain is for classifiers and class-conditional models; leave it out")
    resolved = configs.load(overrides or (), file=config, base=folder.config(ConceptConfig))
    show.generated(evaluate_concept(resolved, folder))
