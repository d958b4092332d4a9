"""A run's state at one point, so that a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_fast import files

FORMAT = 2
FILE_NAME = "last.pt"


@dataclass(frozen=True)
class Checkpoint:
    """identity: what the run is (method, seed, settings, digests), as flat JSON values. history:
    its records so far, as JSON values. extra: what else the loop needs (random state, averaged
    weights), as tensors and plain values."""

    identity: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: dict[str, float]
    extra: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Replace ``folder/last.pt`` in one step: a reader finds the old file or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "model": self.model,
            "optimizer": self.optimizer,
            "history": json.dumps(self.history),
            "seconds": self.seconds,
            "extra": self.extra,
        }
        files.atomic_write(folder / FILE_NAME, lambda path: torch.save(content, path))


def load(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The last checkpoint of this very run; None if there is none yet.

    Raises ValueError when the file is damaged, or belongs to a run with other settings, model or
    data (they are named). Nothing but tensors and plain values is unpickled.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found = json.loads(content["identity"])
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        checkpoint = Checkpoint(
            identity=found,
            model=content["model"],
            optimizer=content["optimizer"],
            history=list(json.loads(content["history"])),
            seconds=content["seconds"],
            extra=dict(content["extra"]),
        )
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ValueError(
            f"checkpoint {path} is damaged or foreign ({type(error).__name__}: {error}); delete "
            "it to start afresh"
        ) from error
    _check_same_run(path, found, identity)
    return checkpoint


def _check_same_run(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    expected = json.loads(json.dumps(expected))
    different = [
        f"{key} was {found.get(key)!r} and is {expected.get(key)!r}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {'; '.join(different)}. Resume with what "
            "the run began with, or use another run_dir"
        )
