"""Jobs in this process, or side by side in several fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TypeVar

import torch

from salun_fast.experiment.log import Record

Job = TypeVar("Job")


class Pool:
    """``workers`` processes with ``threads`` threads each (None: torch's default)."""

    def __init__(self, workers: int, threads: int | None) -> None:
        self._threads = threads
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            self._executor = ProcessPoolExecutor(
                workers,
                mp_context=get_context("spawn"),  # torch's thread pool does not survive a fork
                initializer=_set_threads,
                initargs=(threads,),
            )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def execute(self, work: Callable[[Job], Record], jobs: Sequence[Job]) -> Iterator[Record]:
        """Records of the jobs as they come in; ``work`` and the jobs are pickled."""
        if self._executor is None:
            before = torch.get_num_threads()
            _set_threads(self._threads)
            try:
                yield from map(work, jobs)
            finally:
                torch.set_num_threads(before)
            return
        waiting: set[Future[Record]] = {self._executor.submit(work, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
