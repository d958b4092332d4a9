"""The records of a comparison in one file: appended line by line, read again by the next call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from salun_fast import files

RESULTS = "results.jsonl"
ADDED = {"device": "cpu"}  # what comparisons went by that were begun before there was a choice

Record = dict[str, Any]
OnRecord = Callable[[Record, int, int], None]  # a new record; how many are done; of how many


class Log:
    """``results.jsonl`` of a folder; its first record holds the ``settings`` it was made with."""

    def __init__(self, path: Path, records: list[Record]) -> None:
        self.path, self.records = path, records

    @staticmethod
    def opened(folder: Path, header: Record, *, free: Collection[str]) -> Log:
        """The folder's log, begun with ``header`` where there is none.

        Raises ValueError where it was begun with other settings, ``free`` ones left aside.
        """
        path = folder / RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(path, read_records(folder))
        if log.records:
            _check_same(log.records[0], header, folder, free)
            _drop_cut_off_line(path)
        else:
            path.write_text("")
            log.append(header)
        return log

    def append(self, record: Record) -> None:
        """One line, on disk before it counts."""
        files.append_json_line(self.path, record)
        self.records.append(record)


def read_records(folder: str | os.PathLike[str]) -> list[Record]:
    """All whole records; a last line cut off by a kill is left out."""
    return files.read_json_lines(Path(folder) / RESULTS)


def _check_same(found: Record, header: Record, folder: Path, free: Collection[str]) -> None:
    """How many processes work may change between runs; nothing else."""
    before = ADDED | found.get("settings", {})
    wanted = json.loads(json.dumps(header["settings"]))
    different = [
        f"{key} was {before.get(key)!r} and is {wanted[key]!r}"
        for key in wanted
        if key not in free and before.get(key) != wanted[key]
    ]
    if different:
        raise ValueError(
            f"{folder} holds a comparison with other settings: {'; '.join(different)}. Continue "
            "it with the settings it began with, or use another folder"
        )


def _drop_cut_off_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0] + b"\n"
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
