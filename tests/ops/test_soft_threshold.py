"""soft_threshold_: SalUn-soft's proximal step (ACCEPTANCE B10)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salun_fast import ops, reference
from salun_fast.ops import FLOATS
from tests.conftest import awkward_tensors, clones, same_bytes
from tests.ops.sizes import BIG


@pytest.mark.parametrize("dtype", FLOATS)
def test_b10_the_step_equals_the_oracle_and_its_definition(dtype):
    start, anchors = awkward_tensors(dtype, 1), awkward_tensors(dtype, 2)
    n = sum(param.numel() for param in start)
    for k in (0, 1, n // 3, n - 1, n):
        params, expected = clones(start), clones(start)
        tau = ops.soft_threshold_(params, anchors, k)
        assert torch.equal(tau, reference.soft_threshold_(expected, anchors, k))
        assert all(same_bytes(a, b) for a, b in zip(params, expected, strict=True))
        home = sum(int((p == a).sum()) for p, a in zip(params, anchors, strict=True))
        assert home >= k
    assert all(same_bytes(a, b) for a, b in zip(params, anchors, strict=True))  # k = n: reset


def test_b10_k_0_leaves_every_byte():
    params, anchors = awkward_tensors(torch.float32, 1), awkward_tensors(torch.float32, 2)
    before = clones(params)
    ops.soft_threshold_(params, anchors, 0)
    assert all(same_bytes(a, b) for a, b in zip(params, before, strict=True))


@given(
    pairs=st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, -0.0, 1.0, 1e-45, -3.5])),
        min_size=1,
        max_size=80,
    ),
    fraction=st.floats(0, 1),
)
def test_ties_zeros_and_subnormals(pairs, fraction):
    param = torch.tensor([p for p, _ in pairs], dtype=torch.float32)
    anchor = torch.tensor([a for _, a in pairs], dtype=torch.float32)
    k = int(len(pairs) * fraction)
    expected = param.clone()
    ops.soft_threshold_([param], [anchor], k)
    reference.soft_threshold_([expected], [anchor], k)
    assert same_bytes(param, expected)


def test_the_sampling_path_is_exact_too(two_threads):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(BIG, generator=generator)]
    anchors = [torch.randn(BIG, generator=generator)]
    expected = clones(params)
    ops.soft_threshold_(params, anchors, BIG // 5 * 2)
    reference.soft_threshold_(expected, anchors, BIG // 5 * 2)
    assert same_bytes(params[0], expected[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_name_and_nothing_changes(bad):
    params, anchors = [torch.ones(3), torch.ones(5)], [torch.zeros(3), torch.zeros(5)]
    params[1][2] = bad
    before = clones(params)
    with pytest.raises(ValueError, match="'b' holds NaN or infinity"):
        ops.soft_threshold_(params, anchors, 2, names=["a", "b"])
    assert all(same_bytes(x, y) for x, y in zip(params, before, strict=True))


def test_an_anchor_of_another_dtype_is_refused():
    with pytest.raises(
        TypeError, match="anchors: 'w' is torch.float32, its parameter torch.float16"
    ):
        ops.soft_threshold_([torch.ones(3).half()], [torch.zeros(3)], 1, names=["w"])
