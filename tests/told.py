"""Nested values as plain ones, to be compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from salun_fast import files, sealed

TIMES = {"seconds", "images_per_second"}  # all that may differ between two runs


def told(value: Any) -> Any:
    """Equal exactly where the values are: tensors in dtype, shape and every bit, dicts in order."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), bytes(files.bytes_of(value))
    if isinstance(value, Mapping):
        return [(key, told(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [told(part) for part in value]
    return repr(value)


def told_checkpoint(run_dir: Path) -> Any:
    """A run's last checkpoint (weights, optimizer, mask, random state, history), but its times."""
    content = sealed.load(run_dir / "checkpoints" / "last.pt", "checkpoint", "")
    history = [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in json.loads(content["history"])
    ]
    return told(content | {"history": history, "seconds": sorted(content["seconds"])})
