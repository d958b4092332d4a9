"""A run's state after an epoch, so that a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast import files
from salun_fast.data import ImageSet
from salun_fast.methods.result import EpochRecord

FORMAT = 1
FILE_NAME = "last.pt"


@dataclass(frozen=True)
class Checkpoint:
    """identity: what the run is (method, seed, settings, digests), as flat JSON values."""

    identity: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    generator: Tensor
    rng: list[Tensor]
    history: tuple[EpochRecord, ...]
    seconds: dict[str, float]

    def save(self, folder: Path) -> None:
        """Replace ``folder/last.pt`` in one step: a reader finds the old file or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "model": self.model,
            "optimizer": self.optimizer,
            "generator": self.generator,
            "rng": self.rng,
            "history": json.dumps([record.as_dict() for record in self.history]),
            "seconds": self.seconds,
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
            generator=content["generator"],
            rng=content["rng"],
            history=tuple(EpochRecord(**record) for record in json.loads(content["history"])),
            seconds=content["seconds"],
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


def model_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over names and bytes of all parameters and buffers, row-major."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(files.bytes_of(tensor))
    return digest.hexdigest()


def data_digest(data: ImageSet | None) -> str:
    """SHA-256 (hex) over shape, labels and a stride of the images: enough to tell sets apart."""
    if data is None:
        return "none"
    digest = hashlib.sha256(f"{list(data.images.shape)}{data.mean}{data.std}".encode())
    digest.update(files.bytes_of(data.labels.long()))
    digest.update(files.bytes_of(data.images[:: max(1, len(data) // 64)]))
    return digest.hexdigest()
