"""state="compact": moments of the selected weights alone, in the memory order of their parameter.

The ops step them as they lie (``ranks``). Here they become dense and compact again: for
checkpoints, which are dense always, and where the mask or the layout of a parameter changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from salun_fast import bits
from salun_fast._fused_step import MOMENTS, Group, State, laid_out
from salun_fast._placed_mask import Place
from salun_fast._shards import like, local


def lay_anew(state: State, param: Tensor, before: Place, now: Place) -> None:
    """Take the moments of ``param`` from where they lay to where they are to lie.

    Weights selected before and now keep theirs, those newly selected begin at zero, those newly
    frozen lose theirs. State that is dense already, as a loaded checkpoint is, is compressed.
    """
    if before.is_compact or now.is_compact:
        for key in MOMENTS:
            if isinstance(state.get(key), Tensor):
                state[key] = _compressed(_expanded(state[key], before), param, now)


def _dense_entry(state: State, param: Tensor, place: Place) -> State:
    """A copy of the state of ``param`` in torch's shapes, zeros where it is frozen."""
    if not place.is_compact:
        return state
    return {
        key: like(laid_out(_expanded(value, place), local(param)), param)
        if key in MOMENTS and isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }


def _expanded(tensor: Tensor, place: Place) -> Tensor:
    """What this process holds of a dense state tensor."""
    block = local(tensor)
    if not place.is_compact or block.shape == place.shape:
        return block
    flat = bits.expand(block, place.words.to(block.device), place.shape.numel())
    return flat.as_strided(place.shape, place.stride)


def _compressed(block: Tensor, param: Tensor, place: Place) -> Tensor:
    laid = laid_out(block, local(param))
    if not place.is_compact:
        return like(laid, param)
    return bits.compress(bits.in_memory_order(laid), place.words)


def expand_packed(
    packed: dict[str, Any],
    groups: Sequence[Group],
    place_of: Callable[[Tensor], Place | None],
) -> None:
    """Make the state of a ``state_dict`` dense; what the optimizer holds stays as it is."""
    for group, saved in zip(groups, packed["param_groups"], strict=True):
        for param, key in zip(group["params"], saved["params"], strict=True):
            place, entry = place_of(param), packed["state"].get(key)
            if place is not None and entry is not None:
                packed["state"][key] = _dense_entry(entry, param, place)
