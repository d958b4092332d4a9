"""What a page of diffusion runs is made of: a demo's records, or those of run folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salun_fast import config as configs
from salun_fast.diffusion_records import YARDSTICKS, is_diffusion
from salun_fast.experiment import read_records
from salun_fast.run import RunFolder

Record = dict[str, Any]

# The order of every table.
COMPARED = ("original", "retrain", "ga", "rl", "salun", "random_mask")


@dataclass(frozen=True)
class DiffusionSource:
    """runs: run records, their files as whole paths. settings: of the demo, or the configuration
    of the first run. machine: facts of where it ran. history: steps of a single run folder.
    command: the demo's command line, where it is known."""

    name: str
    runs: list[Record]
    settings: Record
    machine: Record
    history: list[Record] = field(default_factory=list)
    command: str | None = None

    @property
    def model(self) -> str:
        """ "ddpm" or "concept"; empty before the first run is finished."""
        return str(self.runs[0]["model"]) if self.runs else ""

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(r["task"] for r in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Of the unlearning runs; a yardstick may stand once for all of them."""
        unlearned = {int(r["seed"]) for r in self.runs if r["method"] not in YARDSTICKS}
        return sorted(unlearned or {int(r["seed"]) for r in self.runs})

    def of(self, task: str, method: str) -> list[Record]:
        """The runs of a method, by seed."""
        found = [r for r in self.runs if (r["task"], r["method"]) == (task, method)]
        return sorted(found, key=lambda r: int(r["seed"]))

    def first(self, task: str, method: str) -> Record | None:
        """The run of the smallest seed."""
        return next(iter(self.of(task, method)), None)

    def methods(self, task: str) -> list[str]:
        return [m for m in COMPARED if self.of(task, m)]


def holds_diffusion(folders: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether these folders hold diffusion runs; ValueError where only some do."""
    kinds = {os.fspath(f): any(is_diffusion(line) for line in _lines(Path(f))) for f in folders}
    if len(set(kinds.values())) > 1:
        one, other = (next(f for f, kind in kinds.items() if kind is k) for k in (True, False))
        raise ValueError(
            f"{one} holds runs of a diffusion model and {other} does not; one report holds runs "
            "of one kind"
        )
    return all(kinds.values())


def read_diffusion(folders: Sequence[str | os.PathLike[str]]) -> DiffusionSource:
    """Records of one demo's folder, or of one or more run folders.

    Raises FileNotFoundError for a folder that is neither, ValueError for a mixture.
    """
    paths = [Path(folder) for folder in folders]
    demos = [path for path in paths if read_records(path)]
    if demos and len(paths) > 1:
        raise ValueError(f"{demos[0]} is a demo's folder; report it by itself")
    return _demo(paths[0]) if demos else _run_folders(paths)


def _lines(folder: Path) -> list[Record]:
    return read_records(folder) or RunFolder(folder).metrics()


def _demo(folder: Path) -> DiffusionSource:
    header, *rest = read_records(folder)
    runs = [_placed(line, folder) for line in rest if line["kind"] == "run"]
    return DiffusionSource(
        folder.name, runs, header["settings"], header["machine"], command=header.get("command")
    )


def _run_folders(folders: Sequence[Path]) -> DiffusionSource:
    runs: dict[tuple[Any, ...], Record] = {}
    for folder in folders:
        for line in RunFolder(folder).metrics():
            if line["kind"] == "run":
                _add(runs, _placed(line, folder), folder)
    steps = [line for line in RunFolder(folders[0]).metrics() if line["kind"] == "step"]
    settings = _configuration(folders[0])
    machine: Record = settings.pop("machine", None) or {}
    del settings["versions"]  # they are in the machine's facts, too
    return DiffusionSource(
        folders[0].resolve().name,
        list(runs.values()),
        settings,
        machine,
        history=steps if len(folders) == 1 else [],
    )


def _configuration(folder: Path) -> Record:
    """All of config.yaml."""
    file = folder / configs.FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: {configs.FILE} is missing")
    return {"versions": None, **configs.read_yaml(file)}


def _placed(record: Record, folder: Path) -> Record:
    """With whole paths instead of those relative to the folder."""
    files = {name: record.get(name) for name in ("samples", "animation")}
    return record | {name: str(folder / f) if f else None for name, f in files.items()}


def _add(runs: dict[tuple[Any, ...], Record], line: Record, folder: Path) -> None:
    first = next(iter(runs.values()), line)
    if line["model"] != first["model"]:
        raise ValueError(
            f"{folder} holds runs of a {line['model']} model, the folders before it of a "
            f"{first['model']} model; one report holds runs of one kind"
        )
    _check_judge(runs, line, folder)
    key = (line["task"], line["method"], line["seed"])
    if key in runs and line["method"] != "original":  # every run repeats its original
        raise ValueError(
            f"{folder} is a second run of method {line['method']} with seed {line['seed']} on "
            f"{line['task']}; give several runs of one method their own seeds"
        )
    runs.setdefault(key, line)


def _check_judge(runs: dict[tuple[Any, ...], Record], line: Record, folder: Path) -> None:
    """Numbers of one table must come from one judge and one kind of features."""
    known = next((r["metrics"] for r in runs.values() if r["metrics"]), None)
    if known is None or not line["metrics"]:
        return
    ours, theirs = _judge(line["metrics"]), _judge(known)
    if ours != theirs:
        raise ValueError(
            f"{folder} was judged by {ours}, the folders before it by {theirs}; judge all of them "
            "alike to put them side by side"
        )


def _judge(metrics: Record) -> str:
    distance = metrics.get("frechet") or {"label": "no distance"}
    return f"{metrics.get('judge', 'nobody')} ({distance['label']})"
