"""``train``, ``saliency`` and ``unlearn`` of classifiers."""

from __future__ import annotations

from pathlib import Path

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
