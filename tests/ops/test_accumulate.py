"""accumulate_: the rules, in fp32, whatever the dtype and layout of the gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salun_fast import ops, reference
from salun_fast.ops import FLOATS, RULES
from tests.conftest import awkward_tensors, clones, same_bytes


@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_scores_equal_the_oracle_bit_for_bit(rule, dtype, zero_grads):
    scores, grads = awkward_tensors(torch.float32, 1), awkward_tensors(dtype, 2)
    expected, expected_grads = clones(scores), clones(grads)
    ops.accumulate_(scores, grads, rule=rule, zero_grads=zero_grads)
    reference.accumulate_(expected, expected_grads, RULES.index(rule), zero_grads)
    for mine, oracle in zip(scores + grads, expected + expected_grads, strict=True):
        assert same_bytes(mine, oracle)
    assert not zero_grads or all(not bool(grad.any()) for grad in grads)


def test_a6_the_sum_keeps_its_sign_until_the_end():
    g = torch.randn(100)
    opposite, equal = [torch.zeros(100)], [torch.zeros(100)]
    for grad in (g, -g):
        ops.accumulate_(opposite, [grad])
    for grad in (g, g):
        ops.accumulate_(equal, [grad])
    assert not bool(opposite[0].any())
    assert torch.equal(equal[0].abs(), 2 * g.abs())


@given(
    values=st.lists(st.floats(width=32), max_size=70),
    rule=st.sampled_from(RULES),
)
def test_any_float_at_all(values, rule):
    """Zeros of both signs, subnormals, infinities and NaN go through as in plain torch."""
    grad = torch.tensor(values, dtype=torch.float32)
    mine, oracle = torch.ones_like(grad), torch.ones_like(grad)
    ops.accumulate_([mine], [grad], rule=rule)
    reference.accumulate_([oracle], [grad], RULES.index(rule), False)
    assert torch.equal(mine.nan_to_num(-1.0), oracle.nan_to_num(-1.0))


@given(raw=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=70))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_is_widened_exactly(dtype, raw):
    grad = torch.tensor(raw, dtype=torch.int16).view(dtype)
    score = torch.zeros(len(raw))
    ops.accumulate_([score], [grad])
    assert torch.equal(score.nan_to_num(-1.0), (grad.float() + 0.0).nan_to_num(-1.0))


def test_a_gradient_with_other_strides_adds_up_by_element_and_is_zeroed():
    score = torch.zeros(2, 3, 4, 5)
    grad = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    expected = grad.clone()
    ops.accumulate_([score], [grad], zero_grads=True)
    assert torch.equal(score, expected)
    assert not bool(grad.any())


@pytest.mark.parametrize(
    ("scores", "grads", "rule", "error", "words"),
    [
        ([torch.zeros(3).half()], [torch.zeros(3)], "sum", TypeError, "scores: 'w'.*float32"),
        ([torch.zeros(3)], [torch.zeros(4)], "sum", ValueError, r"grads: 'w' has shape \(4,\)"),
        ([torch.zeros(3)], [torch.zeros(3).long()], "sum", TypeError, "grads: 'w' is torch.int64"),
        ([torch.zeros(3)], [], "sum", ValueError, "must pair up"),
        ([torch.zeros(3)], [torch.zeros(3)], "mean", ValueError, "rule must be one of sum"),
        ([torch.zeros(1).expand(3)], [torch.zeros(3)], "sum", ValueError, "gaps or overlaps"),
    ],
)
def test_bad_lists_are_named(scores, grads, rule, error, words):
    with pytest.raises(error, match=words):
        ops.accumulate_(scores, grads, rule=rule, names=["w"])
