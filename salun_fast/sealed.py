"""Torch files whose every byte is checked before anything in them is unpickled.

``torch.save`` writes a zip archive, and a zip archive may end in a comment. Ours is ``sha256:`` and
the hex digest of all bytes before the digest, so that torch reads the file like any other.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from salun_fast import files
from salun_fast.files import FileFormatError, PathLike

_LABEL = b"sha256:"
_DIGITS = 64
_BLOCK = 1 << 20  # bytes hashed in one go
_END = b"PK\5\6"  # begins the last 22 bytes of a zip archive without comment


def save(path: PathLike, content: Any) -> None:
    """Write tensors and plain containers, atomically; without a copy of them in memory."""

    def write(temporary: Path) -> None:
        torch.save(content, temporary)
        _seal(temporary)

    files.atomic_write(path, write)


def load(path: PathLike, what: str, remedy: str) -> Any:
    """What :func:`save` wrote, on the CPU. ``what`` names such a file in errors.

    Raises FileFormatError, ending in ``remedy``, where the file is truncated, altered in any bit,
    unsealed or holds anything but tensors and plain values; OSError where it cannot be read at all.
    """
    with open(path, "rb") as file:  # one file from check to reading, whatever replaces it
        problem = _problem(file)
        if problem is not None:
            raise FileFormatError(path, f"this {what} {problem}", remedy)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a dozen kinds, for what somebody sealed on purpose
            found = f"holds more than tensors and plain values ({_first_line(error)})"
            raise FileFormatError(path, f"this {what} {found}", remedy) from error


def _seal(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _LABEL + b"0" * _DIGITS
    with path.open("r+b") as file:
        digest = _digest(file, _content_length(file))
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(digest)


def _problem(file: BinaryIO) -> str | None:
    """Why the file cannot be trusted; None for one that is as it was sealed."""
    length = _content_length(file)
    file.seek(max(length - len(_LABEL), 0))
    seal = file.read()
    if seal[-22:].startswith(_END):
        return "has no checksum: an older salun-fast or another program wrote it"
    if not seal.startswith(_LABEL):
        return "is truncated, altered or foreign"
    if seal.removeprefix(_LABEL) != _digest(file, length):
        return "was altered: its checksum does not fit"
    return None


def _content_length(file: BinaryIO) -> int:
    """Bytes before the digest; negative in a file that is too short for one."""
    return file.seek(0, os.SEEK_END) - _DIGITS


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256, in hex, of the first ``length`` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        block = file.read(min(_BLOCK, length))
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
