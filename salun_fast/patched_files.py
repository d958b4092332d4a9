"""Weights files and diffusers folders, written anew with their weights changed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salun_fast import files
from salun_fast.files import PathLike
from salun_fast.weights import KIND, VERSION, read_torch

_STEM = "diffusion_pytorch_model"
_IN_PYTHON = (
    "In Python it works: pipeline = DiffusionPipeline.from_pretrained(FOLDER), "
    "UnlearningPatch.load(PATCH).apply_(pipeline.unet), pipeline.save_pretrained(OUT)"
)

Tensors = Mapping[str, Tensor]
# What a file holds, and how to write it with those tensors as they then are.
_Opened = tuple[Tensors, Callable[[Path], None]]


def rewrite(model: PathLike, out: PathLike, change_: Callable[[Tensors], None]) -> None:
    """Write ``model`` to ``out`` with ``change_(tensors)`` made to its weights, in place.

    ``model`` is a ``.safetensors`` file, a torch file (read without unpickling code), a folder of
    a diffusers pipeline, of which the unet is changed, or a folder of one diffusers model. All
    else in it is copied. ``out`` gets the same form, and is whole or absent.

    Raises FileNotFoundError, FileExistsError, ValueError for what cannot be read as weights, and
    whatever ``change_`` raises; then nothing is written.
    """
    source, target = Path(model), Path(out)
    _check_places(source, target)
    weights = _weights_in(source) if source.is_dir() else source
    tensors, write = _open(weights)
    change_(tensors)
    if source.is_dir():
        _write_folder(source, target, weights.relative_to(source), write)
    else:
        write(target)


def _check_places(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass a weights file or a model's folder")
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists already; nothing is overwritten, pass a new path")
    parent = target.resolve().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {parent} is missing; create it first")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies inside {source}; pass a path outside the model's folder")
    if source.is_file() and target.suffix != source.suffix:
        raise ValueError(
            f"{target} must end with {source.suffix!r} as {source} does: the file keeps its format"
        )


def _weights_in(folder: Path) -> Path:
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    indices = sorted(home.glob(f"{_STEM}*.index*.json"))
    if indices:
        raise ValueError(f"{indices[0]}: the weights are cut into several files. {_IN_PYTHON}")
    found = [
        file for end in (".safetensors", ".bin") for file in sorted(home.glob(_STEM + "*" + end))
    ]
    if not found:
        raise FileNotFoundError(
            f"{home} holds no {_STEM}.safetensors; pass a diffusers pipeline with a unet, the "
            "folder of a diffusers model, or a weights file"
        )
    if len(found) > 1:
        raise ValueError(
            f"{home} holds {_listed(found)}, and only one could be changed: the others would keep "
            f"their weights. Keep the one that is used in a copy of the folder. {_IN_PYTHON}"
        )
    return found[0]


def _listed(found: Sequence[Path]) -> str:
    return " and ".join(file.name for file in found)


def _open(file: Path) -> _Opened:
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_torch(file)


def _open_safetensors(file: Path) -> _Opened:
    """Our own files with their checksum; others with the metadata they have."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            ours = files.is_ours(metadata)
            # Copies: a mapped file must not be written to.
            names = () if ours else opened.keys()
            tensors = {name: opened.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"weights file {file} is truncated or not a safetensors file ({error})"
        ) from error
    if ours:
        return _open_ours(file)

    def write(path: Path) -> None:
        files.atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    return tensors, write


def _open_ours(file: Path) -> _Opened:
    tensors, facts = files.load_tensors(file, kind=KIND, version=VERSION)

    def write(path: Path) -> None:
        files.save_tensors(path, tensors, kind=KIND, version=VERSION, facts=facts)

    return tensors, write


def _open_torch(file: Path) -> _Opened:
    """A state dict, or a checkpoint around one, of which all else is kept."""
    content, state = read_torch(file)

    def write(path: Path) -> None:
        files.atomic_write(path, lambda temporary: torch.save(content, temporary))

    return state, write


def _write_folder(source: Path, target: Path, weights: Path, write: Callable[[Path], None]) -> None:
    """Copy all but the weights under a temporary name, write those, then move it into place."""
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")

    def left_out(folder: str, names: list[str]) -> list[str]:
        here = Path(folder) == source / weights.parent
        return [name for name in names if here and name == weights.name]

    try:
        shutil.copytree(source, temporary, ignore=left_out)
        write(temporary / weights)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
