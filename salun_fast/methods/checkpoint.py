"""A run's state at one point, so that a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from salun_fast import files, sealed
from salun_fast.files import FileFormatError

FORMAT = 3
FILE_NAME = "last.pt"
_REMEDY = (
    "Delete it to start afresh, restore it from a copy, or go on with the salun-fast that wrote it"
)


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
        """Replace ``folder/last.pt`` in one step: a reader finds the old file or the new one.

        What a killed run left half written beside it is removed: each would be as large.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        content = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "model": self.model,
            "optimizer": self.optimizer,
            "history": json.dumps(self.history),
            "seconds": self.seconds,
            "extra": self.extra,
        }
        sealed.save(folder / FILE_NAME, content)


def load(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The last checkpoint of this very run; None if there is none yet.

    Raises FileFormatError when the file is truncated, altered, foreign or of another format, and
    ValueError when it belongs to a run with other settings, model or data (they are named).
    Nothing is unpickled before its checksum fits, and nothing but tensors and plain values then.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    content = sealed.load(path, "checkpoint", _REMEDY)
    _check_format(path, content)
    with files.understood(path, _REMEDY):
        checkpoint = _restored(content)
    _check_same_run(path, checkpoint.identity, identity)
    return checkpoint


def _check_format(path: Path, content: Any) -> None:
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int) or found != FORMAT:
        problem = f"this checkpoint has format {found!r}, expected {FORMAT}"
        raise FileFormatError(path, problem, _REMEDY)


def _restored(content: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        identity=dict(json.loads(content["identity"])),
        model=dict(content["model"]),
        optimizer=dict(content["optimizer"]),
        history=list(json.loads(content["history"])),
        seconds=dict(content["seconds"]),
        extra=dict(content["extra"]),
    )


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
