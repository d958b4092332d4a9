"""Classifier weights from and to files; nothing but tensors is ever unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_fast import files, names

KIND, VERSION = "salun-fast model", 1
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep weights


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Parameters and buffers as safetensors, in one step."""
    files.save_tensors(path, model.state_dict(), kind=KIND, version=VERSION, facts={})


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file of :func:`save_weights`, another program's safetensors or a ``.pt``/``.pth``
    state dict into ``model``.

    Names match up to the prefixes of known wrappers (``module.``, ``_orig_mod.``). Raises
    FileNotFoundError, or ValueError when the file is damaged or does not fit the model.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights file {file} does not exist")
    tensors = _read(file)
    own = names.match(tensors, model.state_dict())
    try:
        model.load_state_dict({own.get(name, name): t for name, t in tensors.items()})
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ValueError(
            f"weights file {file} does not fit the model: {details}. Give the model and width "
            "that the weights were trained with"
        ) from error


def _read_safetensors(file: Path) -> Mapping[str, Tensor]:
    """Our own files with their checksum; others, which have none, as they are."""
    try:
        with safe_open(file, framework="pt") as opened:
            ours = files.is_ours(opened.metadata() or {})
        if ours:
            return files.load_tensors(file, kind=KIND, version=VERSION)[0]
        return dict(load_file(file))
    except SafetensorError as error:
        raise ValueError(
            f"weights file {file} is truncated or not a safetensors file ({error})"
        ) from error


def _read(file: Path) -> Mapping[str, Tensor]:
    return _read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)[1]


def read_torch(file: Path) -> tuple[Any, Mapping[str, Tensor]]:
    """All that a torch file holds, on the CPU, and the state dict in it; no code in it is run.

    Raises ValueError where it is damaged or holds something else.
    """
    try:
        content: Any = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # foreign bytes raise a dozen types in torch.load
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"weights file {file} cannot be read as a state dict: {reason}") from error
    state = content
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"weights file {file} must hold a state dict of tensors")
    return content, state
