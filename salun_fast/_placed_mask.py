"""A mask as the masked steps read it: words in the memory order of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from salun_fast import bits, names
from salun_fast.mask import SaliencyMask


class Item(NamedTuple):
    """One parameter of one step: its gradient, and its words (empty: every weight moves)."""

    name: str
    param: Tensor
    grad: Tensor
    words: Tensor


class PlacedMask:
    """Words per parameter, converted once from the mask's row-major order and kept.

    A parameter that moved to another device or changed its strides gets its words anew. Without a
    mask, or without an entry of its name and shape, the words of a parameter are empty.
    """

    def __init__(self, mask: SaliencyMask | None) -> None:
        self._mask = mask
        self._entries: dict[str, str] = {}  # a parameter's name -> the mask's
        self._places: dict[Tensor, tuple[tuple[int, ...], Tensor]] = {}

    def place(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Match names and convert, ahead of the first step: a compiled step only looks words up."""
        pairs = list(named)
        if self._mask is not None:
            self._entries.update(names.match([name for name, _ in pairs], self._mask.words))
        for name, param in pairs:
            self.words(name, param)

    def words(self, name: str, param: Tensor) -> Tensor:
        """int32 words of ``param`` on its device."""
        place = self._places.get(param)
        if place is None or place[0] != param.stride() or place[1].device != param.device:
            place = (param.stride(), self._converted(name, param))
            self._places[param] = place
        return place[1]

    def _converted(self, name: str, param: Tensor) -> Tensor:
        entry = self._entries.get(name)
        if self._mask is None or entry is None or self._mask.shapes[entry] != param.shape:
            return torch.empty(0, dtype=torch.int32, device=param.device)
        return bits.to_memory_order(self._mask.words[entry].to(param.device), param)


def keep(words: Tensor, param: Tensor) -> Tensor:
    """Bool mask laid out as ``param``, from words in its memory order."""
    flat = bits.unpack(words, (param.numel(),))
    return flat.as_strided(param.shape, param.stride())


def masked_gradient(item: Item) -> Tensor:
    """The gradient with zeros outside the mask, whatever NaN stood there: a new tensor.

    It keeps the gradient's strides: torch's half-precision steps round by them.
    """
    if not item.words.numel():
        return item.grad
    return item.grad.masked_fill(~keep(item.words, item.param), 0)


class NonfiniteGradientError(ValueError):
    """A weight that would move has a gradient that is NaN or infinite; nothing was changed."""


def refuse_nonfinite(items: Sequence[Item]) -> None:
    """Raise :class:`NonfiniteGradientError` naming the first parameter of which a moving weight
    has no finite gradient.

    One transfer from the device for all norms. A frozen weight's gradient does not matter, so
    those that look suspicious are taken again under the mask.
    """
    for item in _suspicious(items):
        if not bool(masked_gradient(item).isfinite().all()):
            raise NonfiniteGradientError(
                f"the gradient of '{item.name}' holds NaN or infinity where weights would move; "
                "nothing was changed. Lower the learning rate, clip gradients, or look at the "
                "batch and the loss that made it"
            )


def _suspicious(items: Sequence[Item]) -> list[Item]:
    """Those whose norm is not finite: an infinite or NaN element, or a sum past fp32."""
    if not items:
        return []
    home = items[0].param.device
    norms = [torch.linalg.vector_norm(item.grad, dtype=torch.float32).to(home) for item in items]
    finite = torch.stack(norms).isfinite().tolist()
    return [item for item, good in zip(items, finite, strict=True) if not good]
