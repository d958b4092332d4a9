"""Runs a comparison job by job and keeps its records, so that a killed run goes on where it was.

``results.jsonl`` holds one JSON object per line:

* first ``{"kind": "settings", "settings": {...}, "machine": {...}}``;
* ``{"kind": "train", "seed", "seconds", "settings", "history", "peak_memory_mb"}`` per seed: the
  original model;
* ``{"kind": "run", "task", "seed", "method", "overrides", "metrics", "seconds", "settings",
  "history", "mask", "certificate", "examples", "peak_memory_mb"}`` per task, seed and method
  ("original" has metrics and examples only);
* ``{"kind": "search", "task", "seed", "method", "overrides", "metrics", "average_gap",
  "seconds"}`` per candidate tried; one that diverges has metrics null, an average_gap of 100 and
  "diverged", the error, in place of seconds;
* ``{"kind": "choice", "task", "seed", "method", "overrides", "average_gap"}`` per method: what
  the search chose.

Every record has kind, task, seed, method and overrides. metrics: as ClassifierMetrics.as_dict();
seconds: as UnlearnResult.seconds; mask: null or {count, numel, density, fingerprint,
layers: {parameter: density}}; certificate: null or {frozen, changed, digest_before, digest_after,
holds}; examples: {indices (into the training images), labels, predicted} of some forget images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from salun_fast import machine
from salun_fast.experiment.jobs import Job, execute, key_of
from salun_fast.experiment.log import Log, OnRecord, Record
from salun_fast.experiment.pool import Pool
from salun_fast.experiment.settings import ExperimentSettings
from salun_fast.gpu import known_device


def run_experiment(
    settings: ExperimentSettings,
    folder: str | os.PathLike[str],
    *,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Run what is still missing of a comparison in ``folder`` and return all records.

    on_record: called with each new record, how many jobs are done and how many there are.
    Raises ValueError when the folder holds a comparison with other settings, or for a device
    that torch does not know or have here.
    """
    known_device(settings.device)
    run = _Run(settings, Path(folder), on_record)
    seeds = (*settings.seeds, settings.tuning_seed) if settings.tuned else settings.seeds
    with Pool(settings.workers, settings.threads) as pool:
        run.do(pool, [Job("train", seed) for seed in seeds])
        run.do(pool, [Job("run", s, t, "retrain") for s in seeds for t in settings.tasks])
        run.search(pool)
        run.do(pool, list(_runs(settings, run.chosen())))
    return run.records


def job_count(settings: ExperimentSettings) -> int:
    """How many jobs a whole comparison has."""
    seeds, tasks = len(settings.seeds), len(settings.tasks)
    tried = sum(len(settings.lrs[t][m]) for t in settings.tasks for m in settings.tuned)
    if "salun" in settings.tuned:
        tried += tasks * (len(settings.densities) - 1)
    tuning = 1 if settings.tuned else 0
    rest = len(settings.methods) - 1
    return (seeds + tuning) * (1 + tasks) + tried + seeds * tasks * rest


def _runs(settings: ExperimentSettings, chosen: dict[tuple[str, str], Record]) -> Iterator[Job]:
    """The final runs, seed by seed, so that a cut-off comparison has whole seeds."""
    for seed in settings.seeds:
        for task in settings.tasks:
            for method in settings.methods:
                if method == "original":
                    yield Job("run", seed, task, method)
                elif method != "retrain":
                    best = chosen[task, method]["overrides"]
                    yield Job("run", seed, task, method, tuple(sorted(best.items())))


class _Run:
    """The records so far and the file they stand in."""

    def __init__(
        self, settings: ExperimentSettings, folder: Path, on_record: OnRecord | None
    ) -> None:
        self.settings, self.folder, self.on_record = settings, folder, on_record
        self.total = job_count(settings)
        self.log = Log.opened(folder, _header(settings), free=("workers", "threads", "root"))

    @property
    def records(self) -> list[Record]:
        return self.log.records

    def do(self, pool: Pool, jobs: Iterable[Job]) -> None:
        done = {key_of(r) for r in self.records[1:]}
        missing = [job for job in jobs if job.key not in done]
        if not missing:
            return
        work = partial(execute, self.settings, self.folder)
        for record in pool.execute(work, missing):
            self.log.append(record)
            if self.on_record is not None:
                finished = sum(r["kind"] in ("train", "run", "search") for r in self.records)
                self.on_record(record, finished, self.total)

    def search(self, pool: Pool) -> None:
        """Learning rates; then SalUn's density; then the random mask's rates at that density."""
        settings = self.settings
        density = min(settings.densities, key=lambda d: abs(d - 0.5))
        first = [m for m in settings.tuned if m != "random_mask"]
        self.do(pool, [job for m in first for job in self._candidates(m, {"density": density})])
        if "salun" in settings.tuned:
            others = [d for d in settings.densities if d != density]
            self.do(
                pool,
                [
                    self._job(t, "salun", self._best(t, "salun")["overrides"] | {"density": d})
                    for t in settings.tasks
                    for d in others
                ],
            )
        if "random_mask" in settings.tuned:
            self.do(pool, self._control(density))
        for task in settings.tasks:
            for method in settings.tuned:
                self._choose(task, method)

    def chosen(self) -> dict[tuple[str, str], Record]:
        return {(r["task"], r["method"]): r for r in self.records if r["kind"] == "choice"}

    def _control(self, density: float) -> list[Job]:
        jobs = []
        for task in self.settings.tasks:
            if "salun" in self.settings.tuned:
                density = self._best(task, "salun")["overrides"]["density"]
            jobs += self._candidates("random_mask", {"density": density}, (task,))
        return jobs

    def _candidates(
        self, method: str, fixed: dict[str, float], tasks: tuple[str, ...] | None = None
    ) -> list[Job]:
        fixed = fixed if method in ("salun", "random_mask") else {}
        return [
            self._job(task, method, fixed | {"lr": lr})
            for task in tasks or self.settings.tasks
            for lr in self.settings.lrs[task][method]
        ]

    def _job(self, task: str, method: str, overrides: dict[str, float]) -> Job:
        return Job(
            "search", self.settings.tuning_seed, task, method, tuple(sorted(overrides.items()))
        )

    def _best(self, task: str, method: str) -> Record:
        tried = [
            r
            for r in self.records
            if r["kind"] == "search" and (r["task"], r["method"]) == (task, method)
        ]
        return min(tried, key=lambda r: float(r["average_gap"]))

    def _choose(self, task: str, method: str) -> None:
        if (task, method) in self.chosen():
            return
        best = self._best(task, method)
        kept = ("task", "seed", "method", "overrides", "average_gap")
        self.log.append({"kind": "choice"} | {name: best[name] for name in kept})


def _header(settings: ExperimentSettings) -> Record:
    return {
        "kind": "settings",
        "task": "",
        "seed": settings.tuning_seed,
        "method": "",
        "overrides": {},
        "settings": asdict(settings),
        "machine": machine.facts(settings.device)
        | {"threads": settings.threads or torch.get_num_threads(), "workers": settings.workers},
    }
