"""``train``, ``saliency``, ``unlearn`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salun_fast.cli import show
from salun_fast.cli.options import ConfigFile, From, Out, Overrides, Resume, resolve


def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    out: Out = Path("runs/original"),
    resume: Resume = False,
) -> None:
    """Train a classifier, the model that is to forget."""
    from salun_fast import workflow
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    resolved = resolve(overrides, config, None, resume=folder if resume else None)
    result = workflow.train(resolved, folder, resume=resume)
    show.trained(result, folder)


def saliency(
    overrides: Overrides = None,
    config: ConfigFile = None,
    start: From = None,
    out: Out = Path("runs/saliency"),
) -> None:
    """Measure saliency on the forget set; write scores and mask."""
    from salun_fast import workflow
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    mask = workflow.saliency(resolve(overrides, config, start), folder)
    show.mask_facts(mask)
    show.written(folder.saliency_file, folder.mask_file)


def unlearn(
    overrides: Overrides = None,
    config: ConfigFile = None,
    start: From = None,
    out: Out = Path("runs/unlearned"),
    resume: Resume = False,
) -> None:
    """Make a trained classifier forget, evaluate it before and after, write the report."""
    from salun_fast import workflow
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    resolved = resolve(overrides, config, start, resume=folder if resume else None)
    records = workflow.unlearn(resolved, folder, resume=resume)
    show.judged(records)
    show.certificate(records[-1]["certificate"])
    show.written(folder.model_file, folder.report_file)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or weights file with --config.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    retrain: Annotated[
        Path | None, typer.Option(help="Run folder of the retrained model, for the gaps.")
    ] = None,
) -> None:
    """UA, RA, TA and MIA of a model, and its gaps to a retrained one."""
    from salun_fast import workflow

    runs = {str(run): resolve(overrides, config, run)}
    if retrain is not None:
        runs[str(retrain)] = resolve(overrides, config, retrain)
        workflow.check_same_split(runs[str(run)], runs[str(retrain)])
    measured = {name: workflow.evaluate(found) for name, found in runs.items()}
    show.metrics(measured, yardstick=None if retrain is None else str(retrain))
