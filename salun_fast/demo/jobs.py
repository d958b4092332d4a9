"""The jobs of a diffusion demo: those not yet recorded are done, each whole in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from salun_fast import diffusion_records as records
from salun_fast import machine
from salun_fast.experiment.log import Log, OnRecord, Record
from salun_fast.experiment.pool import Pool

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Job = TypeVar("Job")
FREE = ("workers", "threads", "root", "models")  # may change between calls


def run_jobs(
    model: str,
    settings: DataclassInstance,
    folder: Path,
    jobs: Sequence[Job],
    name: Callable[[Job], tuple[str, str, int]],
    work: Callable[[Job], Record],
    *,
    workers: int,
    threads: int,
    command: str | None,
    on_record: OnRecord | None,
) -> list[Record]:
    """All records of the comparison in ``folder``, those of missing jobs made now.

    name: task, method and seed of a job, as its record has them. work: makes the record; picklable.
    """
    header = records.settings_record(model, asdict(settings), machine.facts(), command=command)
    log = Log.opened(folder, header, free=FREE)
    done = {(r["task"], r["method"], r["seed"]) for r in log.records}
    missing = [job for job in jobs if name(job) not in done]
    with Pool(workers, threads) as pool:
        for record in pool.execute(work, missing):
            log.append(record)
            if on_record is not None:
                on_record(record, len(log.records) - 1, len(jobs))
    return log.records
