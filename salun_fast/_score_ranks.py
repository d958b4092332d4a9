"""Add up the scores of several processes, each of which measured its own share of the data."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from salun_fast._score_sums import ScoreSums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_REMEDY = "nothing was added on any rank"


class _Rank(NamedTuple):
    """What a rank tells the others before any score is sent."""

    ready: int  # 1, or 0 where it has no sums that could be added
    batches: int
    digest: tuple[int, ...]


def add_up_ranks(sums: ScoreSums, group: ProcessGroup | None) -> None:
    """sums := Σ over ranks of sums, and of ``count``; one tensor at a time, in place.

    Every rank ends with the same bits, since each sum is formed once and sent to all.
    """
    _require_group(group)
    everyone = _told(_own(sums), _home(sums.parameters), group)
    _check_all(everyone, group)
    if len(everyone) == 1:
        return
    sums.broken = "adding up the ranks was interrupted, and part of it was done"
    for tensor in sums.tensors.values():
        _reduce(tensor, group)
    sums.count = sum(rank.batches for rank in everyone)
    sums.ranks = len(everyone)
    sums.broken = None


def decline(parameters: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Tell the other ranks, which wait, that this one has nothing to add: they raise too."""
    _require_group(group)
    digest = _digest("", parameters)
    _told(_Rank(0, 0, digest), _home(parameters), group)


def _require_group(group: ProcessGroup | None) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "all_reduce() adds up the scores of several processes and found no process group; call "
            "torch.distributed.init_process_group() first, or leave all_reduce() out in a single "
            "process"
        )
    if dist.get_rank(group) < 0:
        raise ValueError(
            f"group must contain the calling process, rank {dist.get_rank()} of the default group; "
            "call all_reduce() on the group's members only"
        )


def _own(sums: ScoreSums) -> _Rank:
    return _Rank(1, sums.count, _digest(sums.rule, sums.parameters))


def _told(own: _Rank, home: torch.device, group: ProcessGroup | None) -> list[_Rank]:
    """What every rank tells, in the order of ranks."""
    mine = torch.tensor([own.ready, own.batches, *own.digest], dtype=torch.int64, device=home)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, mine, group=group)
    told = (row.tolist() for row in rows)
    return [_Rank(ready, batches, tuple(digest)) for ready, batches, *digest in told]


def _check_all(everyone: list[_Rank], group: ProcessGroup | None) -> None:
    """Raises the same on every rank."""
    unready = [rank for rank, told in enumerate(everyone) if not told.ready]
    if unready:
        raise RuntimeError(
            f"all_reduce(): rank {_listed(unready)} cannot add its scores (its own error says "
            f"why); {_REMEDY}"
        )
    others = [rank for rank, told in enumerate(everyone) if told.digest != everyone[0].digest]
    if others:
        raise ValueError(
            "all_reduce(): expected the same score, parameter names and shapes on every rank, in "
            f"the same order; found others on rank {_listed(others)} than on rank 0 (this is rank "
            f"{dist.get_rank(group)}); {_REMEDY}. Build the same model, with the same parameters "
            "trainable, on each"
        )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _digest(rule: str, parameters: Mapping[str, Tensor]) -> tuple[int, ...]:
    """SHA-256 over rule, names and shapes, as four int64."""
    shapes = [[name, list(tensor.shape)] for name, tensor in parameters.items()]
    return struct.unpack("<4q", hashlib.sha256(json.dumps([rule, shapes]).encode()).digest())


def _home(parameters: Mapping[str, Tensor]) -> torch.device:
    return next(iter(parameters.values())).device


def _reduce(tensor: Tensor, group: ProcessGroup | None) -> None:
    """In row-major order: memory formats may differ between ranks."""
    if tensor.is_contiguous():
        dist.all_reduce(tensor, group=group)
        return
    rows = tensor.contiguous()
    dist.all_reduce(rows, group=group)
    tensor.copy_(rows)
