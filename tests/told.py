"""Nested values as plain ones, to be compared to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from salun_fast import files


def told(value: Any) -> Any:
    """Equal exactly where the values are: tensors in dtype, shape and every bit, dicts in order."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), bytes(files.bytes_of(value))
    if isinstance(value, Mapping):
        return [(key, told(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [told(part) for part in value]
    return repr(value)
