"""The fused step as a few lists, kept from one step to the next while only gradients are new.

To walk parameters, names, words and state in Python costs more than the step of a small model. A
plan is the outcome of one such walk. It is never trusted: each step compares what the walk began
from, and takes the long way again (``fused_step``) where anything is another object, or where the
op refuses the lists, which it does before it writes. Of gradients and state no tensor is kept:
they are fetched at each step, and their memory is free as soon as their owner lets go of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salun_fast import ops
from salun_fast._fused_step import (
    Group,
    HalfPrecision,
    Lists,
    State,
    call_op,
    fused_step,
    ranks_of,
    state_keys,
)
from salun_fast._placed_mask import Item, Place

# Nothing was written where the op, or what prepares its arguments, raises one of these.
_REFUSALS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


class StepPlan:
    """The calls of one step: per group and device one."""

    def __init__(
        self,
        groups: Sequence[Group],
        state: Mapping[Tensor, State],
        work: Sequence[Sequence[tuple[Item, Group]]],
        half: HalfPrecision,
    ) -> None:
        """``work``: what a step that has just been taken has stepped, per group."""
        self._half = half
        self._groups = [(list(group["params"]), _names(group)) for group in groups]
        self._owners, self._entries = list(state), list(state.values())
        stepped = {id(item.owner) for pairs in work for item, _ in pairs}
        params = (param for listed, _ in self._groups for param in listed)
        self._idle = [param for param in params if id(param) not in stepped]
        self._parts = [
            _Part.of(index, group, items, state)
            for index, (group, pairs) in enumerate(zip(groups, work, strict=True))
            for items in _by_device([item for item, _ in pairs])
        ]

    def step(
        self,
        groups: Sequence[Group],
        state: Mapping[Tensor, State],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """Step the parameters that now have a gradient; False, with nothing changed, where these
        are no longer the plan's, or anything else is not as it was."""
        if not self._holds(groups, state):
            return False
        try:
            ready = [part.lists(groups[part.group_index], self._half) for part in self._parts]
        except _REFUSALS:
            return False
        if len(ready) > 1 and not all(map(_is_usual, ready)):
            return False
        for position, (part, lists) in enumerate(zip(self._parts, ready, strict=True)):
            group = groups[part.group_index]
            try:
                call_op(group, lists, grad_scale, found_inf)
            except _REFUSALS:
                if position == 0:
                    return False
                items = part.items(lists.grads)
                fused_step(group, items, part.entries, self._half, grad_scale, found_inf)
        return True

    def _holds(self, groups: Sequence[Group], state: Mapping[Tensor, State]) -> bool:
        return (
            len(groups) == len(self._groups)
            and all(
                _same(group["params"], params) and _names(group) == names
                for group, (params, names) in zip(groups, self._groups, strict=True)
            )
            and _same(state, self._owners)
            and _same(state.values(), self._entries)
            and all(param.grad is None for param in self._idle)
        )


class _Part(NamedTuple):
    """The parameters of one call. ``ordered``: those whose bits lie as their strides do; a vector
    has but one order."""

    group_index: int
    keys: tuple[str, ...]
    names: list[str]
    params: list[Tensor]
    dtypes: list[torch.dtype]
    words: list[Tensor]
    ranks: list[Tensor]
    places: list[Place | None]
    origins: list[int]
    entries: list[State]
    ordered: list[Tensor]
    strides: list[tuple[int, ...]]
    no_master: Tensor  # empty

    @classmethod
    def of(
        cls, index: int, group: Group, items: list[Item], state: Mapping[Tensor, State]
    ) -> _Part:
        params = [item.param for item in items]
        ordered = [item.param for item in items if item.words.numel() and item.param.dim() > 1]
        return cls(
            index,
            state_keys(group),
            [item.name for item in items],
            params,
            [param.dtype for param in params],
            [item.words for item in items],
            ranks_of([item.place for item in items]),
            [item.place for item in items],
            [item.origin for item in items],
            [state[item.owner] for item in items],
            ordered,
            [param.stride() for param in ordered],
            torch.empty(0, device=params[0].device),
        )

    def lists(self, group: Group, half: HalfPrecision) -> Lists:
        """This step's gradients and state; ValueError or KeyError where the plan is outdated."""
        grads = [param.grad for param in self.params]
        outdated = (
            type(None) in set(map(type, grads))
            or state_keys(group) != self.keys
            or [param.stride() for param in self.ordered] != self.strides
        )
        if outdated:
            raise ValueError("the plan is outdated")
        slots = [[entry[key] for entry in self.entries] for key in self.keys]
        if self.ranks and not all(map(self._fits, slots)):
            raise ValueError("the plan is outdated")
        return Lists(
            self.names,
            self.params,
            grads,  # type: ignore[arg-type]
            self.words,
            self.ranks,
            slots,
            [entry["step"] for entry in self.entries],
            self._half_options(half),
        )

    def _fits(self, slot: Sequence[Tensor]) -> bool:
        """Whether compact state has its size, which a kernel on a GPU takes on trust."""
        pairs = zip(self.places, slot, strict=True)
        return all(
            place is None or not place.is_compact or vector.shape == (place.selected,)
            for place, vector in pairs
        )

    def _half_options(self, half: HalfPrecision) -> dict[str, Any]:
        if half.mode == "stochastic":
            return {"origins": self.origins, "rounding_seed": half.seed}
        if half.mode == "nearest":
            return {}
        if [param.dtype for param in self.params] != self.dtypes:
            raise ValueError("the plan is outdated")
        pairs = zip(self.entries, self.dtypes, strict=True)
        return {
            "masters": [
                self.no_master if dtype == torch.float32 else entry["master_param"]
                for entry, dtype in pairs
            ]
        }

    def items(self, grads: Sequence[Tensor]) -> list[Item]:
        """As the long way takes them."""
        rows = zip(
            self.names, self.params, grads, self.words, self.origins, self.places, strict=True
        )
        return [
            Item(name, param, grad, words, param, origin, place)
            for name, param, grad, words, origin, place in rows
        ]


def _is_usual(lists: Lists) -> bool:
    """Whether no parameter or gradient is of the kinds that a step refuses, or takes elsewhere, as
    a whole: a lone call may find out by itself."""
    dtypes = {param.dtype for param in lists.params} | {grad.dtype for grad in lists.grads}
    layouts = {grad.layout for grad in lists.grads}
    return dtypes <= set(ops.FLOATS) and layouts == {torch.strided}


def _by_device(items: Sequence[Item]) -> list[list[Item]]:
    parts: dict[torch.device, list[Item]] = {}
    for item in items:
        parts.setdefault(item.param.device, []).append(item)
    return list(parts.values())


def _names(group: Group) -> list[str] | None:
    given = group.get("param_names")
    return None if given is None else list(given)


def _same(found: Collection[Any], expected: list[Any]) -> bool:
    """The very same objects in the same order; == would compare the values of tensors."""
    return len(found) == len(expected) and all(map(is_, found, expected))
