"""Tensors of one call lie on one device: what does not is refused by name, before any kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salun_fast import ops

NAMES = ["first", "second"]


def _lists(states: int) -> list[list[Tensor]]:
    """params, grads, states..., steps, masks of two parameters."""
    full = [[torch.ones(40), torch.ones(33)] for _ in range(2 + states)]
    steps = [torch.tensor(0.0) for _ in range(2)]
    return [*full, steps, [torch.zeros(2, dtype=torch.int32) for _ in range(2)]]


def _sgd(lists: list[list[Tensor]]) -> None:
    ops.masked_sgd_(*lists, lr=0.1, momentum=0.9, names=NAMES)


def _adam(lists: list[list[Tensor]]) -> None:
    ops.masked_adam_(*lists, lr=0.1, names=NAMES)


SGD_ROLES = ["params", "grads", "momentum_buffers", "steps", "masks"]
ADAM_ROLES = ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "steps", "masks"]


@pytest.mark.parametrize(
    ("step", "roles", "role"),
    [(_sgd, SGD_ROLES, role) for role in SGD_ROLES]
    + [(_adam, ADAM_ROLES, role) for role in ADAM_ROLES],
)
def test_a_tensor_on_another_device_is_named(step, roles, role):
    lists = _lists(len(roles) - 4)
    astray = lists[roles.index(role)]
    astray[1] = astray[1].to("meta")
    with pytest.raises(ValueError, match=rf"{role}: 'second' is on meta, .*cpu"):
        step(lists)
    assert torch.equal(lists[0][0], torch.ones(40))


def test_a_whole_list_on_another_device_is_named():
    lists = _lists(1)
    lists[2] = [tensor.to("meta") for tensor in lists[2]]
    with pytest.raises(ValueError, match="momentum_buffers: 'first' is on meta, expected cpu"):
        _sgd(lists)
