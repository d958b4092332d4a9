"""A comparison of all methods on one data set, with its report and its table in Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from salun_fast import config as configs
from salun_fast import files, machine
from salun_fast.experiment import EXPERIMENTS, ExperimentSettings, run_experiment
from salun_fast.experiment.log import OnRecord
from salun_fast.report import markdown, read_source
from salun_fast.workflow import rebuild_report

DEMOS = tuple(EXPERIMENTS)
TABLE = "table.md"


def demo_settings(data: str, overrides: Sequence[str] = ()) -> ExperimentSettings:
    """The settings of a demo with ``key=value`` changes (``seeds=[0]``, ``train.epochs=3``)."""
    if data not in EXPERIMENTS:
        raise ValueError(f"data must be one of {', '.join(DEMOS)} in the demo, found {data!r}")
    settings = EXPERIMENTS[data]
    values = configs.override_mapping(plain(asdict(settings)), overrides)
    try:
        return replace(settings, **{name: frozen(value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"these settings do not make a comparison: {error}") from error


def run_demo(
    settings: ExperimentSettings,
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    on_record: OnRecord | None = None,
) -> Path:
    """Run what is missing of the comparison, then write report.html and table.md; returns the
    report's path. Killed at any moment, the same call goes on with the jobs not yet done."""
    path = Path(folder)
    _keep_configuration(settings, path, command)
    run_experiment(settings, path, on_record=on_record)
    files.write_text(path / TABLE, markdown(read_source([path])))
    return rebuild_report([path])


def _keep_configuration(settings: ExperimentSettings, folder: Path, command: str | None) -> None:
    """config.yaml, written once: a comparison that goes on keeps its settings."""
    file = folder / configs.FILE
    if file.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {"command": command, **plain(asdict(settings)), "versions": machine.versions()}
    files.write_text(file, configs.to_yaml(content))


def plain(value: Any) -> Any:
    """Tuples as lists, for OmegaConf."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def frozen(value: Any) -> Any:
    """Lists back to tuples, inside mappings too."""
    if isinstance(value, dict):
        return {key: frozen(inner) for key, inner in value.items()}
    return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value
