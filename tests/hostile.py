"""Files made to harm, for tests of what reads files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


class Touch:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Claim:
    """Unpickled by a careless reader, it asks for so many bytes of memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self):
        return bytearray, (self.count,)


def resealed(content: bytes) -> bytes:
    """These bytes with the seal of ``salun_fast.sealed``, as somebody who knows it would add it;
    a seal that is there already is replaced."""
    at = content.rfind(b"sha256:")
    unsealed = content if at < 0 else content[:at]
    labelled = unsealed + b"sha256:"
    return labelled + hashlib.sha256(labelled).hexdigest().encode()


def reseal(path: Path) -> None:
    path.write_bytes(resealed(path.read_bytes()))
