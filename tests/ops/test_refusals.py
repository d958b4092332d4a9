"""Steps are looked at tensor by tensor only after a kernel refused them; the refusal has names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salun_fast import _load, ops
from tests.conftest import same_bytes

if not _load.status().native:
    pytest.skip("the reference refuses nothing by itself", allow_module_level=True)


def _sgd(params: list[Tensor], grads: list[Tensor]) -> None:
    steps = [torch.tensor(0.0) for _ in params]
    masks = [torch.empty(0, dtype=torch.int32) for _ in params]
    ops.masked_sgd_(params, grads, [], steps, masks, lr=0.5, names=["first", "second"])


def _never(*anything: object) -> None:
    raise AssertionError("an ordinary step was looked at")


def test_an_ordinary_step_is_left_to_the_kernel(monkeypatch):
    monkeypatch.setattr(ops, "_check_step", _never)
    params = [torch.ones(40), torch.ones(3, 5)]
    _sgd(params, [torch.ones(40), torch.ones(3, 5)])
    assert all(torch.equal(param, torch.full_like(param, 0.5)) for param in params)


def test_what_a_kernel_refuses_is_named_and_nothing_is_written():
    params = [torch.ones(40), torch.ones(3, 5)]
    with pytest.raises(TypeError, match="grads: 'second' is torch.float64"):
        _sgd(params, [torch.ones(40), torch.ones(3, 5).double()])
    assert torch.equal(params[0], torch.ones(40))


def test_gradients_laid_out_otherwise_are_copied_and_taken():
    params, grad = [torch.ones(40), torch.ones(3, 5)], torch.randn(5, 3).t()
    _sgd(params, [torch.ones(40), grad])
    assert torch.equal(params[0], torch.full_like(params[0], 0.5))
    assert same_bytes(params[1], 1 - 0.5 * grad)


def test_a_failure_that_no_tensor_explains_is_raised_as_it_is_and_not_repeated():
    calls = []

    def fail(grads: object) -> None:
        calls.append(grads)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    params, grads, steps = [torch.ones(40)], [torch.ones(40)], [torch.tensor(0.0)]
    masks = [torch.zeros(2, dtype=torch.int32)]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ops._take_step(fail, params, grads, [], steps, masks, None)
    assert len(calls) == 1


def test_a_sparse_gradient_never_leaves_the_kernel_s_path_unseen():
    with pytest.raises(TypeError, match="grads: 'first' is torch.sparse_coo"):
        _sgd([torch.ones(40), torch.ones(3)], [torch.ones(40).to_sparse(), torch.ones(3)])
