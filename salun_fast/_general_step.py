"""Any optimizer class under a mask: step the wrapped optimizer, then put frozen bytes back.

For optimizers whose update of a weight depends on that weight, its gradient and its state alone
(RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, ASGD, Rprop, ...) the result is
``where(mask, dense step, unchanged)`` for weights and state. Others (Adafactor, Muon) mix the
weights of a tensor: they see a gradient that is zero outside the mask, and frozen weights and
state of the parameter's shape still keep every byte; state of another shape is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from salun_fast._placed_mask import Item, keep, masked_gradient
from salun_fast._shards import like, local


def general_step(
    wrapped: Optimizer, items: Sequence[tuple[Item, dict[str, Any]]], *, restore: bool
) -> None:
    """Step ``wrapped`` with masked gradients; with ``restore`` frozen weights keep every byte.

    ``items`` pairs each parameter that is to be stepped with its group; others stay, whatever
    gradient they have. Costs a copy of the masked parameters and of their state. ``.grad`` is what
    it was afterwards.
    """
    masked = [pair for pair in items if pair[0].words.numel()]
    snapshots = [_Snapshot(wrapped, item, group) for item, group in masked] if restore else []
    with _gradients(wrapped, [item for item, _ in items]):
        try:
            _unhooked_step(wrapped)
        finally:
            for snapshot in snapshots:
                snapshot.restore(wrapped)


class _Snapshot:
    """The bytes of one parameter and of its elementwise state before a step."""

    def __init__(self, wrapped: Optimizer, item: Item, group: dict[str, Any]) -> None:
        self._param, self._owner = item.param, item.owner
        self._keep = keep(item.words, item.param)
        self._before = item.param.detach().clone()
        state = wrapped.state.get(item.owner) or _pristine_state(wrapped, item.owner, group)
        self._state = {
            key: local(value).clone()
            for key, value in state.items()
            if _elementwise(value, item.owner)
        }

    def restore(self, wrapped: Optimizer) -> None:
        self._put_back(self._param, self._before)
        state = wrapped.state.get(self._owner, {})
        for key, before in self._state.items():
            if _elementwise(state.get(key), self._owner):
                self._put_back(local(state[key]), before)

    def _put_back(self, tensor: Tensor, before: Tensor) -> None:
        tensor.copy_(torch.where(self._keep, tensor, before))


def _pristine_state(wrapped: Optimizer, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The state that ``wrapped`` gives a weight at its first step, before any gradient.

    Seen from outside only after that step: so it steps once on zeros with zero gradients.
    """
    probe = torch.zeros_like(param).requires_grad_()
    probe.grad = torch.zeros_like(param)
    twin = object.__new__(type(wrapped))
    twin.__setstate__(
        {
            **{k: v for k, v in wrapped.__dict__.items() if not k.startswith("_optimizer_")},
            "state": type(wrapped.state)(dict),
            "param_groups": [{**group, "params": [probe]}],
        }
    )
    _unhooked_step(twin)
    state: dict[str, Any] = twin.state[probe]
    return state


def adopt_counters(state: dict[str, Any], saved: dict[str, Any], param: Tensor) -> None:
    """Undo torch's cast of loaded 0-dim state (NAdam's ``mu_product``) to half precision."""
    for key, value in saved.items():
        if isinstance(value, Tensor) and value.dim() == 0 and param.dim():
            state[key] = value.clone().to(state[key].device)


def _elementwise(value: Any, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == param.shape


@contextmanager
def _gradients(wrapped: Optimizer, items: Sequence[Item]) -> Iterator[None]:
    """Hand out masked gradients for the length of one step, and none to what is not stepped."""
    params = [param for group in wrapped.param_groups for param in group["params"]]
    given = [(param, param.grad) for param in params]
    try:
        for param in params:
            param.grad = None
        for item in items:
            item.owner.grad = like(masked_gradient(item), item.owner)
        yield
    finally:
        for param, grad in given:
            param.grad = grad


def _unhooked_step(wrapped: Optimizer) -> None:
    """The wrapped class's own step: hooks have run on the SalUnOptimizer already."""
    step = type(wrapped).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(wrapped)
