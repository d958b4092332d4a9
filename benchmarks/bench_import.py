"""import salun_fast costs little on top of torch: in fresh processes that have torch already."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.case import Case, Size

_LIMIT = 0.15
_WAITING = """
import sys, torch
print("ready", flush=True)
sys.stdin.readline()
import salun_fast
print("imported", flush=True)
"""


class FreshProcess:
    """One that has imported torch and waits for the word to import salun_fast."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.close()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, "-c", _WAITING], text=True, **pipes)
        self._hear("ready")

    def go_on(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._hear("imported")

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def _hear(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        heard = self._process.stdout.readline().strip()
        if heard != word:
            raise RuntimeError(f"expected {word!r} from the fresh process, found {heard!r}")


def case(size: Size) -> Case:
    process = FreshProcess()
    return Case(
        "import salun_fast",
        process.go_on,
        "after import torch, its native library loaded",
        [],
        numel=0,
        limit=_LIMIT,
        before=process.start,
        cold=False,
    )


def test_import(claim):
    claim(case, Size(1, 1, density=None, name="in a fresh process"))
