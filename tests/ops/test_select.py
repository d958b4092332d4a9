"""select and its counting form: exactly k bits, the stable order, any cut, any layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salun_fast import bits, ops, reference
from salun_fast.ops import FLOATS
from tests.conftest import awkward_tensors, clones, same_bytes
from tests.ops.sizes import BIG


def flat_mask(masks: list[Tensor], scores: list[Tensor]) -> Tensor:
    parts = [bits.unpack(m, s.shape).reshape(-1) for m, s in zip(masks, scores, strict=True)]
    return torch.cat(parts)


def by_stable_sort(scores: list[Tensor], k: int, largest: bool = True) -> Tensor:
    """The definition: stable argsort of -|s|, the first k in list order (ACCEPTANCE A2)."""
    flat = torch.cat([score.float().reshape(-1) for score in scores]).abs()
    order = torch.sort(flat, descending=largest, stable=True).indices
    chosen = torch.zeros(flat.numel(), dtype=torch.bool)
    chosen[order[:k]] = True
    return chosen


def some_k(n: int) -> list[int]:
    return sorted({k for k in (0, 1, 2, n // 10, n // 2, int(n * 0.7), n - 1, n) if 0 <= k <= n})


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a2_masks_equal_the_stable_sort_and_the_oracle(dtype, largest):
    scores = awkward_tensors(dtype, 5)  # halves bring ties
    for k in some_k(sum(score.numel() for score in scores)):
        masks, threshold = ops.select(scores, k, largest=largest)
        oracle, oracle_threshold = reference.select(scores, k, largest, False)
        assert torch.equal(flat_mask(masks, scores), by_stable_sort(scores, k, largest))
        assert all(same_bytes(a, b) for a, b in zip(masks, oracle, strict=True))
        assert torch.equal(threshold, oracle_threshold)
        assert sum(bits.count(mask) for mask in masks) == k  # A1


special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3.4e38, 0.5])
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    lists=st.lists(st.lists(st.one_of(special, finite), max_size=40), min_size=1, max_size=6),
    fraction=st.floats(0, 1),
    largest=st.booleans(),
)
def test_a1_exactly_k_bits_whatever_ties_zeros_and_subnormals(lists, fraction, largest):
    scores = [torch.tensor(values, dtype=torch.float32) for values in lists]
    k = int(sum(map(len, lists)) * fraction)
    masks, _ = ops.select(scores, k, largest=largest)
    assert torch.equal(flat_mask(masks, scores), by_stable_sort(scores, k, largest))


@given(cuts=st.lists(st.integers(0, 3000), max_size=8), seed=st.integers(0, 10))
def test_a4_the_same_bits_with_the_list_cut_in_any_way(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randint(-9, 9, (3000,), generator=generator).float()
    whole = flat_mask(ops.select([flat], 1234)[0], [flat])
    pieces = list(torch.tensor_split(flat, sorted(cuts)))
    assert torch.equal(flat_mask(ops.select(pieces, 1234)[0], pieces), whole)


def test_a4_bits_follow_the_logical_order_in_every_layout():
    contiguous = torch.randint(0, 4, (6, 5, 4, 3)).float()
    expected = ops.select([contiguous], 100)[0][0]
    layouts = [
        contiguous.contiguous(memory_format=torch.channels_last),
        contiguous.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
        torch.empty(6, 5, 4, 6)[..., ::2].copy_(contiguous),
    ]
    for scores in layouts:
        assert not scores.is_contiguous()
        assert torch.equal(ops.select([scores], 100)[0][0], expected)


def test_a5_masks_are_nested_and_scale_and_sign_do_not_matter():
    scores = awkward_tensors(torch.float32, 8)
    n = sum(score.numel() for score in scores)
    sets = [flat_mask(ops.select(scores, k)[0], scores) for k in (n // 10, n // 3, n // 2)]
    for small, large in itertools.pairwise(sets):
        assert bool((small <= large).all())
    for changed in ([s * -1 for s in scores], [s * 4 for s in scores]):
        assert torch.equal(flat_mask(ops.select(changed, n // 3)[0], changed), sets[1])


def test_a3_the_direction_is_the_largest():
    scores = [torch.randn(5000)]
    for largest in (True, False):
        chosen = flat_mask(ops.select(scores, 2000, largest=largest)[0], scores)
        inside, outside = scores[0].abs()[chosen], scores[0].abs()[~chosen]
        ordered = inside.min() >= outside.max() if largest else inside.max() <= outside.min()
        assert bool(ordered)


def _big_lists() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(BIG, generator=generator)
    image = normal.view(-1, 100, 10, 10)
    return {
        "normal": [normal],
        "half-zero": [torch.where(normal > 0, normal, torch.zeros(())), torch.zeros(7)],
        "all-zero": [torch.zeros(BIG)],
        "few-values": [torch.randint(0, 5, (BIG,), generator=generator).float()],
        "sorted": [normal.sort().values],
        "outliers": [torch.cat([torch.full((BIG,), 1e-30), torch.full((3,), 1e30)])],
        "channels-last": [image.contiguous(memory_format=torch.channels_last)],
        "bfloat16": [normal.bfloat16()],
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_big_lists()))
def test_sampling_misses_and_overflows_stay_exact(name, two_threads):
    scores = _big_lists()[name]
    n = sum(score.numel() for score in scores)
    for k in (1, n // 100, n // 2, n - 1):
        masks, threshold = ops.select(scores, k)
        oracle, oracle_threshold = reference.select(scores, k, True, False)
        assert all(same_bytes(a, b) for a, b in zip(masks, oracle, strict=True))
        assert torch.equal(threshold, oracle_threshold)


def test_one_and_two_threads_give_the_same_bits():
    scores = _big_lists()["few-values"]
    before = torch.get_num_threads()
    masks = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            masks.append(ops.select(scores, BIG // 3)[0])
    finally:
        torch.set_num_threads(before)
    assert same_bytes(masks[0][0], masks[1][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [10, BIG])
def test_a9_nan_and_infinity_are_refused_by_name(bad, size):
    scores = [torch.ones(3), torch.arange(float(size))]
    scores[1][size // 2] = bad
    for k in (0, 2):
        with pytest.raises(ValueError, match="scores: 'layer.weight' holds NaN or infinity"):
            ops.select(scores, k, names=["layer.bias", "layer.weight"])


@pytest.mark.parametrize("largest", [True, False])
def test_a9_the_reference_order_takes_infinity_first_and_nan_last(largest):
    nan, inf = float("nan"), float("inf")
    scores = [torch.tensor([nan, 0.0, inf, 1.0, nan, -inf, 2.0])]
    order = {True: [2, 5, 6, 3, 1, 0, 4], False: [1, 3, 6, 2, 5, 0, 4]}[largest]
    for k in range(8):
        masks, threshold = ops.select(scores, k, largest=largest, allow_nonfinite=True)
        chosen = flat_mask(masks, scores).nonzero().flatten().tolist()
        assert chosen == sorted(order[:k])
        oracle, oracle_threshold = reference.select(scores, k, largest, True)
        assert same_bytes(masks[0], oracle[0])
        assert torch.equal(threshold.nan_to_num(-7), oracle_threshold.nan_to_num(-7))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_counting_form_equals_one_process(parts, largest):
    """Three summed histograms and the ties before each part give the bits of one select()."""
    scores = awkward_tensors(torch.float16, 11)
    n = sum(score.numel() for score in scores)
    k = n // 3
    shards = [
        scores[len(scores) * i // parts : len(scores) * (i + 1) // parts] for i in range(parts)
    ]
    prefix, left = 0, k
    for level in range(3):
        counts = torch.stack(
            [ops.select_histogram(s, prefix, level, largest=largest) for s in shards]
        )
        total = counts.sum(0)
        assert counts[0].numel() * counts.element_size() <= 65536
        digit = 2047 if level < 2 else 1023
        while int(total[digit]) < left:
            left -= int(total[digit])
            digit -= 1
        ties_here = counts[:, digit]
        prefix = digit if level == 0 else (prefix << (11 if level == 1 else 10)) | digit
    masks: list[Tensor] = []
    for shard, ties in zip(shards, ties_here.tolist(), strict=True):
        masks += ops.select_pack(shard, prefix, min(ties, left), largest=largest)
        left -= min(ties, left)
    whole, _ = ops.select(scores, k, largest=largest)
    assert all(same_bytes(a, b) for a, b in zip(masks, whole, strict=True))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_histograms_equal_the_oracle(dtype, level):
    scores = awkward_tensors(dtype, 4)
    for prefix in {0: [0], 1: [0, 1015, 1016], 2: [0, 1016 << 11]}[level]:
        for largest in (True, False):
            mine = ops.select_histogram(scores, prefix, level, largest=largest)
            assert torch.equal(mine, reference.select_histogram(scores, prefix, level, largest))


def test_scores_are_only_read():
    scores = awkward_tensors(torch.float32, 2)
    before = clones(scores)
    ops.select(scores, 100)
    assert all(same_bytes(a, b) for a, b in zip(scores, before, strict=True))


@pytest.mark.parametrize("k", [-1, 11])
def test_k_outside_the_scores_is_refused(k):
    with pytest.raises(ValueError, match=r"k must lie in 0\.\.10"):
        ops.select([torch.ones(10)], k)


def test_an_empty_list_selects_nothing():
    assert ops.select([], 0)[0] == []
    assert ops.select([torch.empty(0)], 0)[0][0].numel() == 0
