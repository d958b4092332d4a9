"""What a report is made of: records of a comparison, or of run folders put side by side."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from salun_fast import config as configs
from salun_fast.config import RunConfig
from salun_fast.evaluation.gap import METRICS
from salun_fast.experiment import Row, read_records, summarise
from salun_fast.experiment.settings import COMPARED
from salun_fast.experiment.summary import deviation
from salun_fast.run import RunFolder

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """records: as in the experiment's results file, its settings line left out. settings: of the
    comparison, or the configuration of the first run. machine: facts of where it ran. history:
    epochs of a single run. command: the command line of a comparison, where it is known."""

    name: str
    records: list[Record]
    settings: Record
    machine: Record
    history: list[Record] = field(default_factory=list)
    command: str | None = None

    @property
    def runs(self) -> list[Record]:
        """Finished runs of the compared seeds; those of the tuning seed are left out."""
        tuning = self.settings.get("tuning_seed")
        return [r for r in self.records if r["kind"] == "run" and r["seed"] != tuning]

    def of(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind]

    def run(self, task: str, method: str) -> Record | None:
        """The run of the smallest seed."""
        found = [r for r in self.runs if (r["task"], r["method"]) == (task, method)]
        return min(found, key=lambda r: int(r["seed"]), default=None)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(r["task"] for r in self.runs))

    def rows(self, task: str) -> list[Row]:
        """The task's rows; without Retrain they have no gaps."""
        runs = [r for r in self.runs if r["task"] == task]
        rows = summarise(runs)
        present = {row.method for row in rows}
        extra = [m for m in COMPARED if m not in present and any(r["method"] == m for r in runs)]
        rows += [
            _row_without_retrain(task, m, [r for r in runs if r["method"] == m]) for m in extra
        ]
        return sorted(rows, key=lambda row: COMPARED.index(row.method))


def read_source(folders: Sequence[str | os.PathLike[str]]) -> Source:
    """Records of one comparison folder, or of one or more run folders.

    Raises FileNotFoundError for a folder that is neither, ValueError for a mixture.
    """
    paths = [Path(folder) for folder in folders]
    comparisons = [(path, read_records(path)) for path in paths]
    if len(paths) == 1 and comparisons[0][1]:
        return _comparison(*comparisons[0])
    mixed = [str(path) for path, records in comparisons if records]
    if mixed:
        raise ValueError(f"{mixed[0]} is a comparison; report it by itself")
    return _single_runs([RunFolder(path) for path in paths])


def _comparison(folder: Path, records: list[Record]) -> Source:
    header, *rest = records
    config = folder / configs.FILE
    command = configs.read_yaml(config).get("command") if config.is_file() else None
    return Source(folder.name, rest, header["settings"], header["machine"], command=command)


def _single_runs(folders: Sequence[RunFolder]) -> Source:
    records: dict[tuple[Any, ...], Record] = {}
    settings: Record = {}
    splits: dict[tuple[str, int], int] = {}
    for folder in folders:
        config = folder.config()
        settings = _merged(settings, asdict(config), folder)
        for line in folder.metrics():
            if line["kind"] == "run":
                _check_split(splits, config, line, folder)
                _add(records, line, folder)
    epochs = [line for line in folders[0].metrics() if line["kind"] == "epoch"]
    machine: Record = next((r["machine"] for r in records.values() if "machine" in r), {})
    return Source(
        folders[0].path.name,
        list(records.values()),
        settings,
        machine,
        history=epochs if len(folders) == 1 else [],
    )


def _merged(settings: Record, other: Record, folder: RunFolder) -> Record:
    """The first run's settings, with the forget sets of all; they must be of one kind."""
    if not settings:
        return other
    task = "forget_class" if other["forget_class"] is not None else "fraction"
    for name in ("data", "model", "width", task):
        if settings[name] is not None and settings[name] != other[name]:
            raise ValueError(
                f"{folder.path} has {name} {other[name]}, the runs before it {settings[name]}; "
                "one report holds runs of one kind"
            )
    return settings | {task: other[task]}


def _check_split(
    splits: dict[tuple[str, int], int], config: RunConfig, line: Record, folder: RunFolder
) -> None:
    """Runs of one seed are compared with each other, so they must forget the same images."""
    if line["task"] == "class":
        return
    seed = line["seed"]
    if splits.setdefault((line["task"], seed), config.forget_seed) != config.forget_seed:
        raise ValueError(
            f"{folder.path} (seed {seed}) forgets the images drawn by split_seed "
            f"{config.forget_seed}, a run before it those of {splits[line['task'], seed]}; "
            "gaps need one and the same split"
        )


def _add(records: dict[tuple[Any, ...], Record], line: Record, folder: RunFolder) -> None:
    key = (line["task"], line["method"], line["seed"])
    if key in records and line["method"] != "original":  # every run repeats its original
        raise ValueError(
            f"{folder.path} is a second run of method {line['method']} with seed {line['seed']}; "
            "give several runs of one method their own seeds"
        )
    records.setdefault(key, line)


def _row_without_retrain(task: str, method: str, runs: list[Record]) -> Row:
    values = {m: [float(r["metrics"][m]) for r in runs] for m in METRICS}
    times = [float(r["seconds"]["total"]) for r in runs if "seconds" in r]
    return Row(
        task=task,
        method=method,
        seeds=tuple(sorted(r["seed"] for r in runs)),
        mean={m: statistics.fmean(v) for m, v in values.items()},
        std={m: deviation(v) for m, v in values.items()},
        gaps={},
        average_gap=math.nan,
        average_gap_std=math.nan,
        rte=statistics.fmean(times) if times else None,
        rte_std=deviation(times) if times else None,
        overrides=dict(runs[0].get("overrides", {})),
    )
