"""The live readout of a run: a progress bar with a status, and lines that stay."""

from __future__ import annotations

from types import TracebackType


class Readout:
    """``with Readout(title, total=steps, enabled=True) as readout``: ``step`` after each step,
    ``status`` for what is known meanwhile, ``report`` for a line that stays."""

    def __init__(self, title: str, *, total: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            transient=True,
        )
        self._title = title
        self._task = self._progress.add_task(title, total=total, status="")

    def __enter__(self) -> Readout:
        if self.enabled:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.enabled:
            self._progress.stop()

    def step(self, steps_done: int) -> None:
        if self.enabled:
            self._progress.update(self._task, completed=steps_done)

    def status(self, words: str) -> None:
        if self.enabled:
            self._progress.update(self._task, status=words)

    def report(self, place: str, words: str, hint: str | None = None) -> None:
        """``place``: where the run is, e.g. "epoch 3/10"."""
        if not self.enabled:
            return
        self.status(words)
        self._print(f"{self._title} {place}  {words}")
        if hint:
            self._print(f"[yellow]{hint}[/yellow]")

    def _print(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)
