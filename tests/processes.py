"""Several processes that work together, as torchrun starts them, without paying for their imports.

A fork server imports torch and salun_fast once a session; every process is forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Body = Callable[..., Any]  # rank, number of ranks, arguments -> what it found

_PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "salun_fast"]


def run_ranks(body: Body, world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``body(rank, world, *arguments)`` returned on each of ``world`` gloo processes.

    ``body`` is a function of a module. Fails with the traceback of the first rank that raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    folder = folder / f"{world}-ranks-{len(list(folder.iterdir()))}"
    folder.mkdir()
    ranks = [
        context.Process(target=_rank, args=(rank, world, folder, body, arguments), daemon=True)
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=100)
    hung = [index for index, rank in enumerate(ranks) if rank.is_alive()]
    for index in hung:
        ranks[index].kill()
    failures = [text.read_text() for text in sorted(folder.glob("*.failed"))]
    assert not failures, failures[0]
    assert not hung, f"ranks {hung} of {world} did not end"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, body: Body, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
        torch.save(body(rank, world, *arguments), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        # Whoever fails first is written first: others may fail because their partner is gone.
        order = len(list(folder.glob("*.failed")))
        (folder / f"{order}-rank{rank}.failed").write_text(f"rank {rank}: {traceback.format_exc()}")
        os._exit(1)
