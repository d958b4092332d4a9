"""A run folder: what every command leaves behind and finds again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from salun_fast import config as configs
from salun_fast import files, machine
from salun_fast.config import RunConfig


class RunFolder:
    """The files of one run.

    config.yaml (resolved configuration, versions, machine), metrics.jsonl (one JSON object per
    line: ``{"kind": "epoch", ...}`` while it runs, then the ``"run"`` records that the report is
    made of), mask.safetensors, model.safetensors, checkpoints/, report.html. Every file is
    complete or absent; metrics.jsonl may end in a line cut off by a kill, which is not read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / configs.FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def mask_file(self) -> Path:
        return self.path / "mask.safetensors"

    @property
    def saliency_file(self) -> Path:
        return self.path / "saliency.safetensors"

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def exists(self) -> bool:
        return self.config_file.is_file()

    def begin(self, command: str, config: RunConfig, *, resume: bool = False) -> None:
        """Create the folder and write config.yaml; a folder in use is only touched to resume.

        A run with a checkpoint keeps its config.yaml: ``config`` may turn out to be another run's.
        """
        if self.exists and not resume:
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume or choose another "
                "folder with --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not (resume and self.checkpoint_file.is_file()):
            self.write_config(command, config)
        self.write_metrics(self.metrics() if resume else [])  # drops a line cut off by a kill

    def write_config(self, command: str, config: RunConfig) -> None:
        """Replace config.yaml in one step."""
        content = {
            "command": command,
            **asdict(config),
            "versions": machine.versions(),
            "machine": machine.facts(config.device),
        }
        files.write_text(self.config_file, configs.to_yaml(content))

    def config(self) -> RunConfig:
        if not self.exists:
            raise FileNotFoundError(f"{self.path} is not a run folder: {configs.FILE} is missing")
        return configs.read_run(self.config_file)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, on disk before this returns."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        if not self.metrics_file.is_file():
            return []
        whole = self.metrics_file.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def write_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl in one step."""
        text = "".join(json.dumps(dict(record)) + "\n" for record in records)
        files.write_text(self.metrics_file, text)
