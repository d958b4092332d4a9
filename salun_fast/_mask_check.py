"""Does the mask act? Checked after the first step: some ports of SalUn never applied it at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from salun_fast import bits
from salun_fast._placed_mask import Item, keep

_CHUNK = 1 << 20  # elements at a time: 8 MiB of hashes
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# An update this many ulps large cannot vanish, whichever optimizer scales the gradient.
_VISIBLE_ULPS = 1024.0


class MaskNotApplied(RuntimeError):
    """A step moved frozen weights, or moved no selected weight where it should have."""


class _Sums(NamedTuple):
    frozen: int
    selected: int


class MaskWitness:
    """Checksums of frozen and of selected weights, taken before a step and compared after it."""

    def __init__(self, items: Sequence[tuple[Item, float]]) -> None:
        """``items``: each masked parameter with the learning rate of its group."""
        self._items = [item for item, _ in items]
        self._before = _all_sums(self._items)
        self.expects_change = any(_must_move(item, lr) for item, lr in items)

    def verify(self) -> None:
        """Raise :class:`MaskNotApplied` unless the step obeyed the mask."""
        after = _all_sums(self._items)
        for item, old, new in zip(self._items, self._before, after, strict=True):
            if old.frozen != new.frozen:
                raise MaskNotApplied(
                    f"the step changed frozen weights of '{item.name}': expected every byte "
                    "outside the mask to stay. Is the parameter also written by another "
                    "optimizer, a hook or an aliasing view?"
                )
        if self.expects_change and all(
            old.selected == new.selected for old, new in zip(self._before, after, strict=True)
        ):
            raise MaskNotApplied(
                "the step changed no selected weight although their gradients are not zero: "
                "expected at least one change. Are the parameters the ones that the model uses?"
            )


def _all_sums(items: Sequence[Item]) -> list[_Sums]:
    """The sums of each item, fetched from their devices at once."""
    home = items[0].param.device
    fetched = torch.stack([_sums(item).to(home) for item in items]).tolist()
    return [_Sums(*pair) for pair in fetched]


def _sums(item: Item) -> Tensor:
    """Position-weighted sums of the bit patterns of frozen and of selected weights, modulo 2^64:
    one changed weight changes them. int64 [2] on the parameter's device."""
    param, words = item.param, item.words
    flat = bits.in_memory_order(param.detach()).view(_INTEGERS[param.element_size()])
    size = min(_CHUNK, flat.numel())
    factors = torch.arange(size, device=param.device) * 0x9E3779B97F4A7C1 | 1  # odd: invertible
    sums = torch.zeros(2, dtype=torch.int64, device=param.device)
    for begin in range(0, flat.numel(), _CHUNK):
        part = flat[begin : begin + _CHUNK].to(torch.int64)
        chunk = words[begin // bits.WORD_BITS : bits.word_count(begin + part.numel())]
        hashes = part * factors[: part.numel()]
        chosen = (hashes * bits.unpack(chunk, part.shape)).sum()
        sums += torch.stack([hashes.sum() - chosen, chosen])
    return sums


def _must_move(item: Item, lr: float) -> bool:
    """Whether some selected weight has a gradient far too large to vanish in rounding."""
    if lr == 0 or not item.param.numel():
        return False
    limits = torch.finfo(item.param.dtype)
    update = item.grad.abs().clamp(max=1.0) * abs(lr)
    floor = (item.param.abs() * limits.eps + limits.tiny) * _VISIBLE_ULPS
    return bool(((update > floor) & keep(item.words, item.param)).any())
