"""Killed at any moment and resumed, a run ends as if nothing had been, and no file is broken."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from salun_fast import sealed
from tests import lives
from tests.told import told_checkpoint

OUTSIDE, INSIDE = 13, 12  # kills of each run: at any time, and within the writing of a checkpoint
PER_FOLDER = 6  # then the run may end, and another begins
MOST_LIVES = 200

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not fork")


@dataclass(frozen=True)
class Kill:
    """share: of the time of a whole run after which the process is killed from outside. save,
    where: the checkpoint of this life, and the point in its writing, at which it kills itself."""

    share: float | None = None
    save: int = 0
    where: str = ""

    def sooner(self) -> Kill:
        """For a run that had ended by then, as the last one was quicker than the one timed."""
        return replace(self, share=None if self.share is None else 0.8 * self.share)


def kills(draw: random.Random) -> list[Kill]:
    """In random order; every point of a write comes up."""
    moments = itertools.islice(itertools.cycle(lives.MOMENTS), INSIDE)
    planned = [Kill(share=(number + draw.random()) / OUTSIDE) for number in range(OUTSIDE)]
    planned += [Kill(save=draw.randint(1, 3), where=where) for where in moments]
    draw.shuffle(planned)
    return planned


@pytest.fixture(scope="module")
def server() -> Any:
    """Starts processes by forking one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "tests.lives"])
    first = context.Process(target=int)  # waits until the server is there
    first.start()
    first.join()
    return context


@pytest.mark.parametrize(
    ("where", "survives"),
    [
        ("half written", "old"),
        ("not synced", "old"),
        ("not in place", "old"),
        ("folder not synced", lives.NEW),
        ("nowhere", lives.NEW),
    ],
)
def test_a_killed_write_leaves_the_old_file_or_the_new_one(where, survives, server, memory_folder):
    target = memory_folder / "file"
    target.write_text("old")
    process = server.Process(target=lives.overwrite, args=(target, where))
    process.start()
    process.join()
    assert process.exitcode == (0 if where == "nowhere" else -signal.SIGKILL)
    assert target.read_text() == survives


@dataclass(frozen=True)
class Life:
    """died: it was killed, and did not end by itself. seconds: it lasted."""

    died: bool
    seconds: float


@dataclass(frozen=True)
class Run:
    """A run in a folder, over all its lives."""

    server: Any
    name: str
    folder: Path

    def live(self, kill: Kill | None = None, whole_seconds: float = 0.0) -> Life:
        kill = kill or Kill()
        arguments = (self.name, self.folder, kill.save, kill.where)
        process = self.server.Process(target=lives.live, args=arguments)
        started = time.perf_counter()
        process.start()
        if kill.share is not None:
            process.join(kill.share * whole_seconds)
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return Life(process.exitcode != 0, time.perf_counter() - started)

    @property
    def files(self) -> list[Path]:
        """The last checkpoint, if there is one, then what killed writes left."""
        home = self.folder / "checkpoints"
        found = sorted(home.iterdir()) if home.is_dir() else []
        return sorted(found, key=lambda path: path.name != "last.pt")

    def progress(self) -> int:
        """Records in the last checkpoint, every byte of which must be right; 0 if there is none."""
        there = [path.name for path in self.files][:1] == ["last.pt"]
        return (
            len(json.loads(sealed.load(self.files[0], "checkpoint", "")["history"])) if there else 0
        )

    def outcome(self) -> Any:
        """All that a finished run left, to the bit."""
        assert [path.name for path in self.files] == ["last.pt"]
        return told_checkpoint(self.folder)


def runs(server: Any, name: str, home: Path) -> Iterator[Run]:
    return (Run(server, name, home / str(number)) for number in itertools.count())


@pytest.mark.parametrize("name", lives.RUNS)
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(
    name, server, memory_folder
):
    fresh = runs(server, name, memory_folder)
    whole = next(fresh)
    seconds = whole.live().seconds
    expected = whole.outcome()
    assert whole.progress() >= lives.SAVES

    waiting, run, deaths, reached = kills(random.Random(f"crash {name}")), next(fresh), 0, []
    left_behind = 0
    for _ in range(MOST_LIVES):
        kill = waiting[0] if waiting and deaths < PER_FOLDER else None
        if run.live(kill, seconds).died:
            waiting, deaths = waiting[1:], deaths + 1
            reached.append(run.progress())
            left_behind += len(run.files) > 1
            assert len(run.files) <= 2  # leftovers do not pile up
            continue
        assert run.outcome() == expected
        if not waiting:
            break
        if kill is not None:
            waiting[0] = kill.sooner()
        run, deaths = next(fresh), 0
    assert not waiting
    assert len(reached) == OUTSIDE + INSIDE
    assert left_behind >= INSIDE / 2  # four of the five points of a write leave a part of one
    assert len(set(reached)) > 2
