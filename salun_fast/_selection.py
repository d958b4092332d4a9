"""From scores to words: on this process, or over all that hold blocks of the scores."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from salun_fast import _sharded_selection as sharded
from salun_fast import bits, ops
from salun_fast._shards import Layout, common_mesh, is_sharded, like, local, summing

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")


def select(
    names: Sequence[str],
    scores: Mapping[str, Tensor],
    k: int,
    largest: bool,
    nonfinite: str,
) -> tuple[list[Tensor], Tensor]:
    """Words of k of the weights of ``names``, and the last score chosen.

    Of sharded scores each process gets the words of its blocks; all must call this.
    """
    mesh = common_mesh(scores[name] for name in names)
    if mesh is not None:
        return _select_over(mesh, names, scores, k, largest, nonfinite)
    home = scores[names[0]].device  # a model spread over devices is ranked on its first
    return ops.select(
        [scores[name].to(home) for name in names],
        k,
        largest=largest,
        allow_nonfinite=nonfinite == "reference",
        names=names,
    )


def random_keys(
    tensors: Mapping[str, Tensor], chosen: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Uniform over all finite non-negative floats: 2^31 values, so ties are few. Drawn on the CPU
    for whole tensors: every process keeps its block."""
    generator = torch.Generator().manual_seed(seed)
    infinity = 0x7F800000
    keys = {}
    for name in chosen:
        tensor = tensors[name]
        drawn = torch.randint(infinity, tensor.shape, dtype=torch.int32, generator=generator)
        keys[name] = _own(drawn.view(torch.float32), tensor)
    return keys


def no_words(tensor: Tensor) -> Tensor:
    """Zeros: every weight that this process holds of ``tensor`` is frozen."""
    words = bits.word_count(local(tensor).numel())
    return torch.zeros(words, dtype=torch.int32, device=tensor.device)


def _own(whole: Tensor, tensor: Tensor) -> Tensor:
    if not is_sharded(tensor):
        return whole
    block = Layout.of(tensor).block().cut(whole).contiguous()
    return like(block.to(tensor.device), tensor)


def _select_over(
    mesh: DeviceMesh,
    names: Sequence[str],
    scores: Mapping[str, Tensor],
    k: int,
    largest: bool,
    nonfinite: str,
) -> tuple[list[Tensor], Tensor]:
    parts = [_part(name, scores[name]) for name in names]
    if nonfinite != "reference":
        _drive(sharded.refuse_nonfinite(parts), mesh)
    if k == 0:  # no score is the last one chosen: as ops.select
        limit = torch.tensor(float("inf") if largest else float("-inf"))
        return [no_words(scores[name]) for name in names], limit
    cut = _drive(sharded.find_cut(parts, k, largest), mesh)
    words = _drive(sharded.pack(parts, cut, largest), mesh)
    return words, sharded.magnitude(cut, largest)


def _part(name: str, scores: Tensor) -> sharded.Part:
    if not is_sharded(scores):
        raise ValueError(
            f"{name!r} is not sharded and other parameters are: expected all of them to be, so "
            "that each weight counts once. fully_shard() the module it belongs to, or leave it out "
            "of the parameters to select from"
        )
    return sharded.Part(name, local(scores), Layout.of(scores).block())


def _drive(steps: Generator[Tensor, None, Result], mesh: DeviceMesh) -> Result:
    """Run an algorithm to its end, adding up over ``mesh`` whatever it yields."""
    add_up = summing(mesh)
    while True:
        try:
            add_up(next(steps))
        except StopIteration as done:
            result: Result = done.value
            return result
