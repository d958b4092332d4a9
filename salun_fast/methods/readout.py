"""The live readout of a run: a progress bar, and a line per epoch with UA, RA, loss, images/s."""

from __future__ import annotations

from types import TracebackType

from salun_fast.methods.result import EpochRecord


class Readout:
    """``with Readout(...) as readout``: ``step`` after each step, ``epoch`` after each epoch."""

    def __init__(self, title: str, *, epochs: int, steps: int, enabled: bool) -> None:
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
        self._epochs = epochs
        self._task = self._progress.add_task(title, total=epochs * steps, status="")

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

    def epoch(self, record: EpochRecord) -> None:
        if not self.enabled:
            return
        status = _status(record)
        self._progress.update(self._task, status=status)
        self._progress.console.print(
            f"{self._title} epoch {record.epoch}/{self._epochs}  {status}",
            highlight=False,
            soft_wrap=True,
        )
        if record.hint:
            self._progress.console.print(
                f"[yellow]{record.hint}[/yellow]", highlight=False, soft_wrap=True
            )


def _status(record: EpochRecord) -> str:
    shares = ((name.upper(), getattr(record, name)) for name in ("ua", "ra", "ta"))
    parts = [f"{name} {value:.1f} %" for name, value in shares if value is not None]
    parts += [f"loss {record.loss:.4f}", f"{record.images_per_second:,.0f} images/s"]
    return "  ".join(parts)
