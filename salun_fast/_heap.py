"""Memory that steps free, kept for the next step instead of being given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

# mallopt(3). What glibc starts from is 128 KiB and grows with the blocks that are freed, up to the
# limits that are set again at the end.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_LARGEST_THRESHOLD = 32 * 2**20
_DEFAULT_MMAPS = 65536


@contextlib.contextmanager
def kept_memory(kept: bool, device: torch.device) -> Iterator[None]:
    """Within, what is freed stays with this process; at the end it goes back to the system.

    glibc maps large blocks one by one and unmaps them when freed, so that a step on the CPU meets
    every page of its activations anew: the kernel zeroes them all. No value changes. GPUs have
    torch's own cache: nothing is done. Afterwards the heap may have holes, empty of pages; a block
    that is made in one of them keeps its pages once more when it is freed. Raises ValueError where
    malloc is not glibc's.
    """
    if not kept or device.type != "cpu":
        yield
        return
    glibc = _glibc()
    glibc.mallopt(_MMAP_MAX, 0)
    glibc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        glibc.mallopt(_MMAP_MAX, _DEFAULT_MMAPS)
        glibc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        glibc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        glibc.malloc_trim(0)


def _glibc() -> Any:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        raise ValueError(
            f"keep_memory needs the malloc of glibc, found none on {sys.platform}: leave it out, "
            "or run under an allocator that keeps what is freed, such as jemalloc"
        )
    return library
