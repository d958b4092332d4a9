"""Packed masks in plain torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salun_fast import bits

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@given(shape=shapes, seed=st.integers(0, 99))
def test_pack_and_unpack_are_inverse(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    words = bits.pack(mask)
    assert words.dtype == torch.int32
    assert words.numel() == math.ceil(mask.numel() / 32)  # A12
    assert torch.equal(bits.unpack(words, shape), mask)
    assert bits.count(words) == int(mask.sum())


def test_bit_i_of_word_w_is_element_32_w_plus_i():
    mask = torch.zeros(70, dtype=torch.bool)
    mask[[0, 31, 33, 69]] = True
    assert bits.pack(mask).tolist() == [1 - 2**31, 2, 32]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_memory_order_follows_the_strides(order):
    mask = torch.arange(60).view(3, 4, 5) % 7 == 0
    like = torch.empty([mask.shape[d] for d in order])
    like = like.permute([order.index(d) for d in range(3)])
    assert like.shape == mask.shape
    words = bits.to_memory_order(bits.pack(mask), like)
    placed = torch.empty_strided(like.shape, like.stride(), dtype=torch.bool).copy_(mask)
    assert torch.equal(bits.unpack(words, (60,)), bits.in_memory_order(placed))


def test_contiguous_words_are_handed_through():
    words = bits.pack(torch.ones(40, dtype=torch.bool))
    assert bits.to_memory_order(words, torch.empty(40)) is words


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.empty(3, 4).t(), True),
        (torch.empty(0, 3), True),
        (torch.empty(4, 4)[:, :2], False),
        (torch.empty(1).expand(3), False),
        (torch.empty(4, 1, 3).transpose(0, 1), True),
    ],
)
def test_is_dense(tensor, dense):
    assert bits.is_dense(tensor) == dense


@given(numel=st.integers(0, 9000), density=st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_compressing_and_expanding_are_inverse_and_ranks_count(numel, density):
    generator = torch.Generator().manual_seed(numel)
    mask = torch.rand(numel, generator=generator) < density
    values, words = torch.randn(numel, generator=generator), bits.pack(mask)
    small = bits.compress(values, words)
    assert torch.equal(small, values[mask])
    assert torch.equal(bits.expand(small, words, numel), torch.where(mask, values, 0.0))
    counted = [int(mask[:end].sum()) for end in range(0, numel + bits.RANK_RUN, bits.RANK_RUN)]
    assert bits.ranks(words, numel).tolist() == counted
    assert bits.count(words) == int(mask.sum())


def test_every_bit_of_a_word_counts_once():
    single = [1 << i for i in range(31)] + [-(1 << 31)]
    assert bits.count(torch.tensor(single, dtype=torch.int32)) == 32
    assert bits.count(torch.tensor([-1, 0, -2], dtype=torch.int32)) == 63


def test_compact_vectors_of_another_mask_are_refused():
    words = bits.pack(torch.arange(40) < 7)
    with pytest.raises(ValueError, match=r"7 ones, found compact values of shape \(8,\)"):
        bits.expand(torch.zeros(8), words, 40)
    with pytest.raises(ValueError, match="7 ones"):
        bits.expand(torch.zeros(7, 1), words, 40)
    with pytest.raises(ValueError, match="has 3 words, found 2"):
        bits.expand(torch.zeros(7), words, 65)
    with pytest.raises(ValueError, match="has 2 words, found 1"):
        bits.compress(torch.zeros(40), words[:1])
    with pytest.raises(ValueError, match="takes a vector.*in_memory_order"):
        bits.compress(torch.zeros(8, 5), words)
    with pytest.raises(ValueError, match="a mask of 65 bits has 3 words, found 2"):
        bits.ranks(words, 65)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="bool tensor, found torch.int64"):
        bits.pack(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="has 2 words, found 1"):
        bits.unpack(torch.zeros(1, dtype=torch.int32), (40,))
