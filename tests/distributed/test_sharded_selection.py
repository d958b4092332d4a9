"""Selection over simulated processes: the bits of one process, and what is sent for them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salun_fast import _sharded_selection as sharded
from salun_fast import bits, ops
from salun_fast._sharded_selection import Part
from salun_fast._shards import Block
from tests.conftest import awkward_tensors

KIB = 1024


class Wire:
    """Adds up what the processes yield, in step, and keeps the size of each sum."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def run(self, processes: Sequence[Generator[Tensor, None, Any]]) -> list[Any]:
        """What each returned."""
        while True:
            yielded, results = [], []
            for process in processes:
                try:
                    yielded.append(next(process))
                except StopIteration as done:
                    results.append(done.value)
            if not yielded:
                return results
            assert not results, "some processes send and others are done"
            total = torch.stack(yielded).sum(0)
            assert all(tensor.dtype == torch.int64 for tensor in yielded)
            self.bytes.append(total.numel() * 8)
            for tensor in yielded:
                tensor.copy_(total)


def cut(tensor: Tensor, shards: int, dim: int) -> list[Block]:
    """As FSDP2 cuts: equal pieces rounded up, the last ones smaller or empty."""
    if tensor.dim() == 0:  # whole everywhere, and counted once
        return [Block((), (), (), rank == 0) for rank in range(shards)]
    dim %= tensor.dim()
    size = tensor.shape[dim]
    step = -(-size // shards)
    blocks = []
    for rank in range(shards):
        begin = min(rank * step, size)
        offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
        offsets[dim], sizes[dim] = begin, min(step, size - begin)
        blocks.append(Block(tuple(tensor.shape), tuple(offsets), tuple(sizes)))
    return blocks


def spread(tensors: list[Tensor], shards: int, dim: int = 0) -> list[list[Part]]:
    """What each process holds."""
    layouts = [cut(tensor, shards, dim) for tensor in tensors]
    return [
        [
            Part(f"w{i}", blocks[rank].cut(tensor), blocks[rank])
            for i, (tensor, blocks) in enumerate(zip(tensors, layouts, strict=True))
        ]
        for rank in range(shards)
    ]


def selected(
    everyone: list[list[Part]], k: int, largest: bool = True
) -> tuple[list[list[Tensor]], Wire]:
    wire = Wire()
    cuts = wire.run([sharded.find_cut(parts, k, largest) for parts in everyone])
    assert len(set(cuts)) == 1
    words = wire.run([sharded.pack(parts, cuts[0], largest) for parts in everyone])
    return words, wire


def put_together(tensors: list[Tensor], everyone: list[list[Part]], words: list[list[Tensor]]):
    """Whole bool masks from the blocks of all processes."""
    masks = [torch.zeros(tensor.shape, dtype=torch.bool) for tensor in tensors]
    for parts, packed in zip(everyone, words, strict=True):
        for mask, part, mine in zip(masks, parts, packed, strict=True):
            part.block.cut(mask).copy_(bits.unpack(mine, part.block.sizes))
    return masks


def assert_same_as_one_process(tensors, k, everyone, largest=True) -> Wire:
    expected, threshold = ops.select(tensors, k, largest=largest)
    words, wire = selected(everyone, k, largest)
    for mask, whole in zip(put_together(tensors, everyone, words), expected, strict=True):
        assert torch.equal(bits.pack(mask), whole)
    cuts = Wire().run([sharded.find_cut(parts, k, largest) for parts in everyone])
    assert torch.equal(sharded.magnitude(cuts[0], largest), threshold)
    return wire


KINDS = {
    "distinct": lambda tensor: tensor,
    "equal": torch.ones_like,
    "zero": torch.zeros_like,
    "few values": lambda tensor: tensor.round(),
    "signs": torch.sign,
    "denormal": lambda tensor: tensor * 1e-44,
    "huge": lambda tensor: tensor * 1e37,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shards", "dim"), [(1, 0), (2, 0), (3, 0), (7, 0), (3, 1), (2, -1)])
def test_any_cut_gives_the_bits_of_one_process(kind, shards, dim):
    tensors = [KINDS[kind](tensor) for tensor in awkward_tensors(torch.float32, 0)]
    total = sum(tensor.numel() for tensor in tensors)
    everyone = spread(tensors, shards, dim)
    for k in (1, total // 3, total // 2, total - 1, total):
        for largest in (True, False):
            assert_same_as_one_process(tensors, k, everyone, largest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=5),
    st.integers(1, 9),
    st.floats(0.01, 1.0),
)
def test_ties_anywhere_go_to_the_lowest_flat_index(values, shards, density):
    tensors = [torch.tensor(row, dtype=torch.float32) for row in values]
    k = int(sum(map(len, values)) * density)
    if k:
        assert_same_as_one_process(tensors, k, spread(tensors, shards))


def test_blocks_that_several_processes_hold_count_once():
    """Replicate x Shard, as FSDP2 on a mesh of two dimensions."""
    tensors = [torch.ones(6, 5), torch.arange(30.0).reshape(6, 5)]
    halves = spread(tensors, 2)
    copies = [
        [part._replace(block=part.block._replace(counted=False)) for part in parts]
        for parts in halves
    ]
    for k in (7, 31, 44):
        expected, _ = ops.select(tensors, k)
        words, _ = selected([*halves, *copies], k)
        for held in (words[:2], words[2:]):
            for mask, whole in zip(put_together(tensors, halves, held), expected, strict=True):
                assert torch.equal(bits.pack(mask), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_every_process_names_the_parameter_with_nan_or_infinity(bad):
    tensors = [torch.ones(8), torch.ones(8), torch.ones(8)]
    tensors[1][7] = bad  # on the last process only
    processes = [sharded.refuse_nonfinite(parts) for parts in spread(tensors, 4)]
    running = [next(process) for process in processes]
    total = torch.stack(running).sum(0)
    for tensor in running:
        tensor.copy_(total)
    named = [next(process) for process in processes]
    total = torch.stack(named).sum(0)
    for tensor, process in zip(named, processes, strict=True):
        tensor.copy_(total)
        with pytest.raises(ValueError, match="'w1' holds NaN or infinity"):
            next(process)


SHARDS = 4096


def test_4096_processes_send_three_histograms_of_16_kib():
    tensors = [torch.randn(SHARDS * 3, 2), torch.randn(1000, 3), torch.randn(513)]
    total = sum(tensor.numel() for tensor in tensors)
    wire = assert_same_as_one_process(tensors, total // 2, spread(tensors, SHARDS))
    assert wire.bytes == [16 * KIB] * 3


def test_4096_processes_settle_ties_with_at_most_64_kib_at_a_time():
    tensors = [torch.zeros(SHARDS * 3, 2), torch.ones(1000, 3), torch.zeros(513)]
    total = sum(tensor.numel() for tensor in tensors)
    wire = assert_same_as_one_process(tensors, total // 2, spread(tensors, SHARDS))
    digits = math.ceil((SHARDS * 6 - 1).bit_length() / 13)
    assert wire.bytes == [16 * KIB] * 3 + [len(tensors) * 8] + [64 * KIB] * digits


def test_more_parameters_than_fit_a_sum_go_in_pieces():
    tensors = [torch.zeros(1) for _ in range(8192 + 5)]
    wire = assert_same_as_one_process(tensors, 8192 + 2, spread(tensors, 2))
    assert max(wire.bytes) == 64 * KIB
    assert len(wire.bytes) == 3 + 2 + 1


def test_a_flat_index_beyond_32_bits_is_told_from_others():
    block = Block((2**20, 2**20), (2**19, 5), (2, 3))
    positions = torch.arange(6)
    rows, columns = 2**19 + positions // 3, 5 + positions % 3
    assert torch.equal(block.flat_indices(positions), rows * 2**20 + columns)
