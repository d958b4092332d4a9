"""Shared inputs: the tensors a person would not think of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

# Empty first, in the middle and last; around the word and the tile; 0-dim; odd tails.
AWKWARD_SHAPES: tuple[tuple[int, ...], ...] = (
    (0,), (1,), (31,), (32,), (33,), (), (511,), (513,), (3, 0, 2), (8, 5, 3, 3), (7, 6, 5, 4),
    (1, 4, 1, 9), (40000,), (0,),
)  # fmt: skip


def awkward_tensors(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    """One random tensor per awkward shape; the 4-dim ones alternate in memory format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for i, shape in enumerate(AWKWARD_SHAPES):
        tensor = (torch.randn(shape, generator=generator) * scale).to(dtype)
        if len(shape) == 4 and i % 2 == 1:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif len(shape) == 4:
            tensor = tensor.transpose(0, 3)
        tensors.append(tensor)
    return tensors


def clones(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that keep the strides."""
    return [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Equal to the bit: -0.0 is not 0.0, and NaN payloads count."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[left.element_size()]
    return left.dtype == right.dtype and torch.equal(
        left.detach().contiguous().view(kind), right.detach().contiguous().view(kind)
    )


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is such a place: a disk is slow where each file is synced."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
