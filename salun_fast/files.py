"""Files that are whole or absent: atomic writes, and safetensors whose every byte is checked.

A file of ours is a safetensors file whose metadata holds ``format`` (what it is),
``format_version``, one JSON value per fact, and ``sha256`` over all of that and the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_DIGEST = "sha256"
_FORMAT = "format"
_VERSION = "format_version"
_REMEDY = "Restore it from a copy or write it again"
# What looking up, converting and reshaping raise; JSON nested too deeply is a RuntimeError.
_NOT_UNDERSTOOD = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")

PathLike = str | os.PathLike[str]


class FileFormatError(ValueError):
    """A file that is not what it is taken for: truncated, altered or foreign."""

    def __init__(self, path: PathLike, problem: str, remedy: str = _REMEDY) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}. {remedy}.")


def atomic_write(path: PathLike, write: Callable[[Path], None]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, then put it in place in one move.

    Readers see the old file or the new one, whole; a process killed at any moment leaves ``path``
    as it was, at worst with a ``.tmp`` file beside it, which :func:`remove_leftovers` removes. Both
    file and folder are synced. Whatever ``write`` raises passes through, and the temporary file is
    removed.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing to the file it names
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} is missing; create it first")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(target.parent)


def remove_leftovers(folder: PathLike) -> None:
    """Remove what killed processes left half written in ``folder``, which none may be writing to.

    Only temporary files of :func:`atomic_write` go; there need not be such a folder.
    """
    for path in Path(folder).glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Replace a text file (UTF-8) in one move."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)


def append_json_line(path: PathLike, value: Any) -> None:
    """Add a line to a file of :func:`read_json_lines`, on disk before this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: PathLike) -> list[Any]:
    """The values of a file with one JSON value per line; none where there is no such file.

    A last line cut off by a kill is left out. FileFormatError names a line that is no JSON.
    """
    if not Path(path).is_file():
        return []
    values = []
    for number, line in enumerate(Path(path).read_bytes().rpartition(b"\n")[0].splitlines(), 1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            problem = f"line {number} is not a JSON value ({error})"
            raise FileFormatError(path, problem, "Mend or remove that line") from error
    return values


def save_tensors(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    version: int,
    facts: Mapping[str, Any],
) -> None:
    """Write ``tensors`` and ``facts`` (JSON values) as a safetensors file, atomically."""
    stored = _unshared(tensors)
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    metadata |= {_FORMAT: kind, _VERSION: str(version)}
    metadata[_DIGEST] = _digest(stored, metadata)
    atomic_write(path, lambda temporary: save_file(stored, temporary, metadata=metadata))


def load_tensors(
    path: PathLike, *, kind: str, version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors`: tensors on the CPU, and the facts.

    Raises FileFormatError where the file is truncated, altered in any bit, of another kind or of
    a newer version; OSError where it cannot be read at all.
    """
    tensors, metadata = _read(path, kind)
    found = metadata.get(_FORMAT)
    if found != kind:
        what = f"a {found} file" if found else "another program's file"
        raise FileFormatError(path, f"expected a {kind} file, found {what}", "Pass the right file")
    if metadata.pop(_DIGEST, None) != _digest(tensors, metadata):
        raise FileFormatError(path, f"this {kind} file was altered: its checksum does not fit")
    if metadata.pop(_VERSION, None) != str(version):
        problem = f"this {kind} file has another format version than {version}"
        raise FileFormatError(path, problem, "Read it with the salun-fast that wrote it, or newer")
    del metadata[_FORMAT]
    with understood(path):
        return tensors, {key: json.loads(value) for key, value in metadata.items()}


@contextmanager
def understood(path: PathLike, remedy: str = _REMEDY) -> Iterator[None]:
    """Taking apart what a file holds: whatever a wrong content raises becomes a FileFormatError."""
    try:
        yield
    except FileFormatError:
        raise
    except _NOT_UNDERSTOOD as error:
        problem = f"its contents contradict its header ({type(error).__name__}: {error})"
        raise FileFormatError(path, problem, remedy) from error


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata came from :func:`save_tensors`.

    Either mark will do: one altered name must not turn it into a file without a checksum.
    """
    return not metadata.keys().isdisjoint((_DIGEST, _VERSION))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, row-major, each in its own storage: safetensors wants no sharing."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != whole.nbytes:
            whole = whole.clone()
        storages.add(whole.untyped_storage().data_ptr())
        stored[name] = whole
    return stored


def _read(path: PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open(path, "rb") as file:  # OSError if it cannot be read, before safetensors words it
        if not file.read(1):
            raise FileFormatError(path, f"expected a {kind} file, found an empty one")
    try:
        with safe_open(path, framework="pt") as opened:
            # Copies: aligned, and independent of what becomes of the file.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = f"expected a {kind} file, found one that is truncated, altered or foreign"
        raise FileFormatError(path, f"{problem} ({error})") from error


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder; its rename is journalled
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
