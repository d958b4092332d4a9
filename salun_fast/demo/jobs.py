"""What both diffusion demos share: their settings, and jobs that are each done once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from salun_fast import diffusion_records as records
from salun_fast import machine
from salun_fast.experiment.log import Log, OnRecord, Record
from salun_fast.experiment.pool import Pool
from salun_fast.gpu import known_device

Job = TypeVar("Job")
METHODS = ("salun", "random_mask", "rl", "ga")
FREE = ("workers", "threads", "root", "models")  # may change between calls


@dataclass(frozen=True)
class Comparison:
    """models: folder of what is to forget, and of its judges. unlearn: settings of all methods
    under ``preset``; own: what a method changes of them. device: where all of it is computed.
    workers: processes side by side, ``threads`` threads each; run times are measured under that
    load."""

    data: str
    models: str
    root: str | None = None
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (1,)
    preset: str = "reference"
    unlearn: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "cpu"
    workers: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, found {self.methods}")
        if not self.seeds or self.workers < 1:
            raise ValueError(
                f"seeds must hold at least one number and workers be at least 1, found "
                f"{self.seeds} and {self.workers}"
            )

    def settings_of(self, method: str) -> dict[str, Any]:
        return {**self.unlearn, **self.own.get(method, {})}


def run_jobs(
    model: str,
    settings: Comparison,
    folder: Path,
    jobs: Sequence[Job],
    name: Callable[[Job], tuple[str, str, int]],
    work: Callable[[Job], Record],
    *,
    command: str | None,
    on_record: OnRecord | None,
) -> list[Record]:
    """All records of the comparison in ``folder``, those of missing jobs made now.

    name: task, method and seed of a job, as its record has them. work: makes the record; picklable.
    """
    known_device(settings.device)
    known = asdict(settings) | {"models_digest": _digest(Path(settings.models))}
    header = records.settings_record(model, known, machine.facts(settings.device), command=command)
    log = Log.opened(folder, header, free=FREE)
    done = {(r["task"], r["method"], r["seed"]) for r in log.records}
    missing = [job for job in jobs if name(job) not in done]
    with Pool(settings.workers, settings.threads) as pool:
        for record in pool.execute(work, missing):
            log.append(record)
            if on_record is not None:
                on_record(record, len(log.records) - 1, len(jobs))
    return log.records


def _digest(folder: Path) -> str:
    """SHA-256 (hex, shortened) of all weights: results of other models are not gone on with."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
