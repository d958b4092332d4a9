"""Digests of models and data: what a run, or a cache, belongs to."""

from __future__ import annotations

import hashlib

from torch import nn

from salun_fast import files
from salun_fast.data import ImageSet


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
