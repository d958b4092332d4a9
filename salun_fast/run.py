"""A run folder: what every command leaves behind and finds again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from salun_fast import config as configs
from salun_fast import files, machine
from salun_fast.config import Config, RunConfig, Schema


class RunFolder:
    """The files of one run.

    config.yaml (resolved configuration, versions, machine), metrics.jsonl (one JSON object per
    line: ``{"kind": "epoch", ...}`` while it runs, then the ``"run"`` records that the report is
    made of), mask.safetensors, model.safetensors, checkpoints/, report.html. Runs of diffusion
    models write ``{"kind": "step", ...}`` lines, pipeline/ (as diffusers saves it),
    patch.safetensors, samples/ and cache/ instead of the model. Every file is complete or absent;
    metrics.jsonl may end in a line cut off by a kill, which is not read.
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
    def pipeline_folder(self) -> Path:
        return self.path / "pipeline"

    @property
    def averaged_folder(self) -> Path:
        """The pipeline with the moving average of the weights, where one was kept."""
        return self.path / "pipeline-averaged"

    @property
    def patch_file(self) -> Path:
        return self.path / "patch.safetensors"

    @property
    def samples_folder(self) -> Path:
        return self.path / "samples"

    @property
    def cache_folder(self) -> Path:
        return self.path / "cache"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def exists(self) -> bool:
        return self.config_file.is_file()

    @property
    def command(self) -> str:
        """What made this folder, e.g. "unlearn" or "unlearn ddpm"."""
        if not self.exists:
            raise FileNotFoundError(f"{self.path} is not a run folder: {configs.FILE} is missing")
        return str(configs.read_yaml(self.config_file).get("command", ""))

    def begin(self, command: str, config: Schema, *, resume: bool = False) -> None:
        """Create the folder and write config.yaml; a folder in use is only touched to resume.

        A run with a checkpoint keeps its config.yaml: ``config`` may turn out to be another run's.
        """
        if self.exists and not resume:
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume or choose another "
                "folder with --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.path)
        if not (resume and self.checkpoint_file.is_file()):
            self.write_config(command, config)
        self.write_metrics(self.metrics() if resume else [])  # drops a line cut off by a kill

    def write_config(self, command: str, config: Schema) -> None:
        """Replace config.yaml in one step."""
        content = {
            "command": command,
            **asdict(config),
            "versions": machine.versions(),
            "machine": machine.facts(config.device),
        }
        files.write_text(self.config_file, configs.to_yaml(content))

    @overload
    def config(self) -> RunConfig: ...

    @overload
    def config(self, schema: type[Config]) -> Config: ...

    def config(self, schema: type[Any] = RunConfig) -> Any:
        """What the run went by; ValueError where it is a run of another kind than the schema."""
        command = self.command
        if command and command not in schema.COMMANDS:
            raise ValueError(
                f"{self.path} holds a run of `{command}`, expected one of "
                f"{', '.join(f'`{known}`' for known in schema.COMMANDS)}; pass another folder"
            )
        return configs.read_run(self.config_file, schema)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, on disk before this returns."""
        files.append_json_line(self.metrics_file, dict(record))

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        return files.read_json_lines(self.metrics_file)

    def write_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl in one step."""
        text = "".join(json.dumps(dict(record)) + "\n" for record in records)
        files.write_text(self.metrics_file, text)
