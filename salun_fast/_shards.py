"""Sharded parameters (DTensor: FSDP2, tensor parallelism) as the rest of the package sees them.

A tensor is *sharded* where this process holds a block of it. Blocks are rectangular, so the
row-major order within a block agrees with that of the whole tensor, which breaks ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor; asked without importing that class, which costs a second."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this process holds: the tensor itself where it is not sharded. Shares its memory."""
    if not is_sharded(tensor):
        return tensor
    block: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return block


def is_one_of_several(group: dist.ProcessGroup | None = None) -> bool:
    """Whether this process works with others (None: all that torch.distributed knows)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def like(block: Tensor, whole: Tensor) -> Tensor:
    """``block`` as the part of a tensor that is sharded as ``whole``; itself where that is not."""
    return Layout.of(whole).wrap(block) if is_sharded(whole) else block


def beside(tensor: Tensor, param: Tensor) -> Tensor:
    """What this process holds of a gradient or state, where it holds the same of ``param``."""
    if is_sharded(tensor) and tensor.placements != param.placements:  # type: ignore[attr-defined]
        tensor = tensor.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return local(tensor)


def first_index(tensor: Tensor) -> int:
    """Row-major index, in the whole tensor, of the first element that this process holds."""
    if not is_sharded(tensor) or not local(tensor).numel():
        return 0
    return int(Layout.of(tensor).block().flat_indices(torch.zeros(1, dtype=torch.int64)))


def part_of(tensor: Tensor, param: Tensor) -> Tensor:
    """As :func:`beside`, out of a whole tensor too."""
    if is_sharded(param) and not is_sharded(tensor):
        return Layout.of(param).block().cut(tensor)
    return beside(tensor, param)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on every process that holds a block of it: all must call this."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


class Block(NamedTuple):
    """Where the local part of a tensor lies. counted: of the processes that hold this very block,
    this is the one that counts it."""

    shape: tuple[int, ...]  # of the whole
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    counted: bool = True

    @property
    def numel(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape)

    def cut(self, whole: Tensor) -> Tensor:
        """The block out of a whole tensor: a view."""
        for dim, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            whole = whole.narrow(dim, min(offset, whole.shape[dim]), size)
        return whole

    def flat_indices(self, positions: Tensor) -> Tensor:
        """From row-major positions within the block, int64 [n], to those in the whole tensor."""
        flat, stride = torch.zeros_like(positions), 1
        for offset, size, extent in zip(
            reversed(self.offsets), reversed(self.sizes), reversed(self.shape), strict=True
        ):
            flat += (positions % size + offset) * stride
            positions = positions // size
            stride *= extent
        return flat


class Layout(NamedTuple):
    """How a tensor is spread over processes."""

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, mesh: DeviceMesh | None = None) -> Layout:
        """Of a DTensor; with ``mesh`` also of a tensor that all its processes hold whole."""
        if mesh is None or is_sharded(tensor):
            sharded: Any = tensor
            spread = (sharded.device_mesh, tuple(sharded.placements))
        else:
            from torch.distributed.tensor import Replicate

            spread = (mesh, (Replicate(),) * mesh.ndim)
        return cls(*spread, tuple(tensor.shape), tensor.stride())

    def wrap(self, block: Tensor) -> Tensor:
        """The DTensor of which this process holds ``block``; shares its memory."""
        from torch.distributed.tensor import DTensor

        made: Tensor = DTensor.from_local(
            block, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape),
            stride=self.stride,
        )  # fmt: skip
        return made

    def block(self) -> Block:
        """The block that this process holds."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sizes, offsets = compute_local_shape_and_global_offset(
            torch.Size(self.shape), self.mesh, self.placements
        )
        coordinate = self.mesh.get_coordinate()
        first_copy = all(
            place == 0 or not placement.is_replicate()
            for place, placement in zip(coordinate or (), self.placements, strict=True)
        )
        return Block(self.shape, tuple(offsets), tuple(sizes), first_copy)


def common_mesh(tensors: Iterable[Tensor]) -> DeviceMesh | None:
    """The mesh whose processes hold blocks of all these; None where none is sharded.

    Raises ValueError for meshes of different processes.
    """
    sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
    meshes = [tensor.device_mesh for tensor in sharded]
    processes = {tuple(sorted(mesh.mesh.flatten().tolist())) for mesh in set(meshes)}
    if len(processes) > 1:
        raise ValueError(
            f"the sharded parameters lie on {len(processes)} device meshes of different "
            "processes: expected all on one, so that they can be ranked together. Shard them over "
            "the same processes, or rank each mesh's parameters apart"
        )
    return meshes[0] if meshes else None


def summing(mesh: DeviceMesh) -> Callable[[Tensor], None]:
    """A function that adds up a tensor, in place, over all processes of ``mesh``."""
    groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]  # one after the other: all of them

    def add_up(tensor: Tensor) -> None:
        for group in groups:
            dist.all_reduce(tensor, group=group)

    return add_up
