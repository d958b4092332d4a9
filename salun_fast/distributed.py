"""Masks over sharded parameters (FSDP2), and masks in distributed checkpoints.

Each process holds the bits of its own blocks. What needs the whole mask, or its totals, says that
it is a collective: every process that holds blocks must call it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salun_fast import bits, names
from salun_fast._shards import Layout, common_mesh, gathered, local, summing
from salun_fast.files import PathLike
from salun_fast.mask import MaskMismatchError, SaliencyMask
from salun_fast.names import Named

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from salun_fast.optimizer import SalUnOptimizer

__all__ = ["MaskState", "ShardedMask"]


class ShardedMask:
    """A mask of which each process holds the bits of its blocks, and no others.

    Made by :meth:`Saliency.sharded_mask`, :meth:`SalUnOptimizer.select`, or :meth:`of`.
    ``whole()`` turns it into a :class:`SaliencyMask`.

    Attributes:
        local: the bits of this process's blocks, under the names of the parameters, with the
            blocks' shapes; each packed from bit 0.
        shapes: per name the shape of the whole parameter.
        count: how many weights may move, over all processes.
        score: as in SaliencyMask.
    """

    def __init__(
        self,
        words: Mapping[str, Tensor],
        layouts: Mapping[str, Layout],
        *,
        count: int,
        score: str | None = None,
    ) -> None:
        """``words``: of the blocks that this process holds of tensors spread as ``layouts``."""
        self._layouts = {name: layouts[name] for name in words}
        sizes = {name: layout.block().sizes for name, layout in self._layouts.items()}
        self.local = SaliencyMask(words, sizes, score=score)
        self.shapes = {name: layout.shape for name, layout in self._layouts.items()}
        self.count = count
        self.score = score

    @classmethod
    def of(cls, mask: SaliencyMask, parameters: Named, *, strict: bool = True) -> ShardedMask:
        """This process's blocks of a whole mask; fits or raises as :meth:`SaliencyMask.check`."""
        found = names.named_tensors(parameters)
        mesh = common_mesh(found.values())
        mask = mask.aligned_to(found, strict=strict)
        layouts = {name: Layout.of(found[name], mesh) for name in mask.names}
        words = {
            name: bits.pack(layout.block().cut(mask[name])).to(local(found[name]).device)
            for name, layout in layouts.items()
        }
        return cls(words, layouts, count=mask.count, score=mask.score)

    @property
    def names(self) -> list[str]:
        return self.local.names

    @property
    def numel(self) -> int:
        """N: how many weights the mask covers, over all processes."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def density(self) -> float:
        """count / numel; 0 for a mask of nothing."""
        return self.count / self.numel if self.numel else 0.0

    def check(self, parameters: Named, *, strict: bool = True) -> None:
        """Raise MaskMismatchError unless the mask fits parameters that are sharded alike."""
        found = names.named_tensors(parameters)
        blocks = {name: local(tensor) for name, tensor in found.items()}
        self.local.check(blocks, strict=strict)
        for name, own in names.match(found, self.shapes).items():
            layout = Layout.of(found[name], self._mesh)
            if layout.shape == self.shapes[own] and layout.block() != self._layouts[own].block():
                raise MaskMismatchError(
                    f"ShardedMask does not fit the model: {name!r} is sharded in another way than "
                    "when the mask was made; use mask.whole() of the old, or a file of it"
                )

    def whole(self) -> SaliencyMask:
        """The whole mask on every process, on the CPU: all must call this. One parameter at a
        time is gathered."""
        words = {}
        for name, layout in self._layouts.items():
            full = gathered(layout.wrap(self.local[name].view(torch.uint8)))
            words[name] = bits.pack(full.view(torch.bool)).cpu()
        return SaliencyMask(words, self.shapes, score=self.score)

    def save(self, path: PathLike) -> None:
        """Write the file of :meth:`SaliencyMask.save`: all processes call this, the first writes.

        It returns everywhere once the file is whole.
        """
        mask = self.whole()
        problem: Exception | None = None  # safetensors has errors of its own: the others wait
        if not any(self._mesh.get_coordinate() or ()):
            try:
                mask.save(path)
            except Exception as error:
                problem = error
        failed = torch.tensor([int(problem is not None)], device=self._home)
        summing(self._mesh)(failed)
        if problem is not None:
            raise problem
        if int(failed):
            raise OSError(f"{path}: the first process could not write it; its own error says why")

    def __repr__(self) -> str:
        return (
            f"ShardedMask({len(self.names)} parameters, {self.count:,} of {self.numel:,} weights, "
            f"density {self.density:.4g}, score {self.score!r}; {self.local.numel:,} of them here)"
        )

    @property
    def _mesh(self) -> DeviceMesh:
        return next(iter(self._layouts.values())).mesh

    @property
    def _home(self) -> torch.device:
        return next(iter(self.local.words.values())).device


class MaskState:
    """An optimizer's mask as ``torch.distributed.checkpoint`` saves and loads it, onto any number
    of processes.

    Example:
        >>> state = {"model": ..., "optimizer": ..., "mask": MaskState(optimizer)}
        >>> dcp.save(state, checkpoint_id=folder)
        >>> dcp.load(state, checkpoint_id=folder)  # before set_optimizer_state_dict

    A byte per weight while it is saved or loaded, tensors only, and a digest that is checked: a
    mask that was altered is a ValueError, and the mask in force stays. Loading a checkpoint without
    a mask frees every weight.
    """

    def __init__(self, optimizer: SalUnOptimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """Per parameter uint8 of its shape, sharded as it is: 1 where the weight may move."""
        mask = self._optimizer.mask
        named = self._named()
        entries = {} if mask is None else names.match(named, mask.shapes)
        state = {
            name: torch.zeros_like(param, dtype=torch.uint8, requires_grad=False)
            for name, param in named.items()
        }
        if mask is not None:
            blocks = mask.local if isinstance(mask, ShardedMask) else mask
            for name, entry in entries.items():
                local(state[name]).copy_(blocks[entry])
        return {
            **{f"bits.{names.canonical(name)}": octets for name, octets in state.items()},
            "entries": torch.tensor([name in entries for name in named], dtype=torch.uint8),
            "sha256": _digest(whole_mask(mask), entries),
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Put the saved mask in force."""
        named = self._named()
        covered = [
            name for name, entry in zip(named, state_dict["entries"].tolist(), strict=True) if entry
        ]
        if not covered:
            self._optimizer.set_mask(None)
            return
        octets = {name: state_dict[f"bits.{names.canonical(name)}"] for name in covered}
        whole = SaliencyMask.from_dict(
            {name: gathered(tensor).view(torch.bool).cpu() for name, tensor in octets.items()}
        )
        same = {name: name for name in covered}
        if not torch.equal(_digest(whole, same), state_dict["sha256"].cpu()):
            raise ValueError(
                "the mask of this checkpoint was altered: its sha256 does not fit its bits; load "
                "another checkpoint"
            )
        self._optimizer.set_mask(whole, strict=False)

    def _named(self) -> dict[str, Tensor]:
        return dict(self._optimizer._named())


def whole_mask(mask: SaliencyMask | ShardedMask | None) -> SaliencyMask | None:
    """As :meth:`ShardedMask.whole`, where there is something to gather."""
    return mask.whole() if isinstance(mask, ShardedMask) else mask


def _digest(mask: SaliencyMask | None, entries: Mapping[str, str]) -> Tensor:
    """uint8 [32], whatever wrappers the names carry; zeros for no mask."""
    if mask is None:
        return torch.zeros(32, dtype=torch.uint8)
    plain = SaliencyMask(
        {names.canonical(name): mask.words[entry] for name, entry in entries.items()},
        {names.canonical(name): mask.shapes[entry] for name, entry in entries.items()},
    )
    return torch.frombuffer(bytearray.fromhex(plain.fingerprint), dtype=torch.uint8)
