"""A mask as the masked steps read it: words in the memory order of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from salun_fast import bits, names
from salun_fast._shards import Layout, common_mesh, is_sharded, local, summing
from salun_fast.distributed import ShardedMask
from salun_fast.mask import MaskMismatchError, SaliencyMask


class Place(NamedTuple):
    """How the words of a parameter lie. ranks: int64, where compact state keeps its values
    (``bits.ranks``), ``selected`` in all; empty where state is dense."""

    name: str
    shape: torch.Size  # of what this process holds, as are the strides
    stride: tuple[int, ...]
    words: Tensor
    ranks: Tensor
    selected: int

    @property
    def is_compact(self) -> bool:
        return self.ranks.numel() > 0


class Item(NamedTuple):
    """One parameter of one step, as this process holds it: its gradient, and its words (empty:
    every weight moves). owner: the parameter itself, which may be sharded. origin: flat index of
    the first element among all weights of the optimizer, where that is asked for. place: where the
    words come from."""

    name: str
    param: Tensor
    grad: Tensor
    words: Tensor
    owner: Tensor
    origin: int = 0
    place: Place | None = None

    @property
    def is_compact(self) -> bool:
        """Whether its per-weight state is that of the selected weights alone."""
        return self.place is not None and self.place.is_compact


class PlacedMask:
    """Words per parameter, converted once from the mask's row-major order and kept.

    A parameter that moved to another device or changed its strides gets its words anew, and so
    does one that was put in the place of another (accelerate shards parameters after the optimizer
    was made). Without a mask, or without an entry of its name and shape, the words of a parameter
    are empty. compact: the optimizer keeps state for the weights of the words alone.
    """

    def __init__(self, mask: SaliencyMask | ShardedMask | None, *, compact: bool = False) -> None:
        self._mask = mask
        self._compact = compact
        self._entries: dict[str, str] = {}  # a parameter's name -> the mask's
        self._dense: dict[str, tuple[int, ...]] = {}  # shapes of what the user let move as a whole
        self._places: dict[Tensor, Place] = {}

    def place(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Match names and convert, ahead of the first step: a compiled step only looks words up."""
        pairs = list(named)
        if self._mask is not None:
            self._entries.update(names.match([name for name, _ in pairs], self._mask.shapes))
            free = [(name, param) for name, param in pairs if not self._covers(name, param)]
            self._dense.update((name, tuple(param.shape)) for name, param in free)
        for name, param in pairs:
            self.at(name, param)

    def known(self, param: Tensor) -> Place | None:
        """Where the words of ``param`` lay when they were last asked for."""
        return self._places.get(param)

    def at(self, name: str, param: Tensor) -> Place:
        """The words of what this process holds of ``param``, on its device."""
        block = local(param)
        place = self._places.get(param)
        if place is None:
            self._admit(name, param)
        if place is None or place.stride != block.stride() or place.words.device != block.device:
            place = self._placed(name, param, block)
            self._places[param] = place
        return place

    def _placed(self, name: str, param: Tensor, block: Tensor) -> Place:
        words = self._converted(name, param, block)
        if self._compact and words.numel():
            ranks = bits.ranks(words, block.numel())
            return Place(name, block.shape, block.stride(), words, ranks, int(ranks[-1]))
        none = torch.empty(0, dtype=torch.int64, device=block.device)
        return Place(name, block.shape, block.stride(), words, none, 0)

    def _covers(self, name: str, param: Tensor) -> bool:
        entry = self._entries.get(name)
        return self._mask is not None and self._mask.shapes.get(entry or "") == tuple(param.shape)

    def _admit(self, name: str, param: Tensor) -> None:
        """A parameter that was not here when the mask was placed must not move as a whole."""
        shape = tuple(param.shape)
        known = self._dense.get(name) == shape or self._covers(name, param)
        if self._mask is not None and not known:
            entry = self._entries.get(name, "")
            masked = self._mask.shapes.get(entry, "no such parameter")
            expected = self._dense.get(name, masked)
            raise MaskMismatchError(
                f"a parameter group now holds a tensor of shape {shape} as '{name}', "
                f"for which the mask was set with {expected}: something replaced the parameters "
                "(DeepSpeed ZeRO and FSDP1 flatten them), and the mask cannot act. Use FSDP2 "
                "(fully_shard), or DDP"
            )
        self._places = {p: place for p, place in self._places.items() if place.name != name}

    def _converted(self, name: str, param: Tensor, block: Tensor) -> Tensor:
        if self._mask is None or not self._covers(name, param):
            return torch.empty(0, dtype=torch.int32, device=block.device)
        return bits.to_memory_order(self._row_major(name, param).to(block.device), block)

    def _row_major(self, name: str, param: Tensor) -> Tensor:
        entry = self._entries[name]
        if isinstance(self._mask, ShardedMask):
            return self._mask.local.words[entry]
        assert self._mask is not None
        if is_sharded(param):
            return bits.pack(Layout.of(param).block().cut(self._mask[entry]))
        return self._mask.words[entry]


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
    has no finite gradient; on every process that holds blocks of them, if they are sharded.

    One transfer from the device for all norms. A frozen weight's gradient does not matter, so
    those that look suspicious are taken again under the mask.
    """
    bad = [False] * len(items)
    for index in _suspicious(items):
        bad[index] = not bool(masked_gradient(items[index]).isfinite().all())
    mesh = common_mesh(item.owner for item in items)
    if mesh is not None:
        counts = torch.tensor(bad, dtype=torch.int64, device=items[0].param.device)
        summing(mesh)(counts)
        bad = (counts > 0).tolist()
    if any(bad):
        raise NonfiniteGradientError(
            f"the gradient of '{items[bad.index(True)].name}' holds NaN or infinity where weights "
            "would move; nothing was changed. Lower the learning rate, clip gradients, or look at "
            "the batch and the loss that made it"
        )


def _suspicious(items: Sequence[Item]) -> list[int]:
    """Those whose norm is not finite: an infinite or NaN element, or a sum past fp32."""
    if not items:
        return []
    home = items[0].param.device
    norms = [torch.linalg.vector_norm(item.grad, dtype=torch.float32).to(home) for item in items]
    finite = torch.stack(norms).isfinite().tolist()
    return [index for index, good in enumerate(finite) if not good]
