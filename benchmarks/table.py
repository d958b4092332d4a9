"""Measures cases side by side and says plainly what was reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.case import Call, Case, Peer, Size
from benchmarks.clock import Clock, clock_of
from benchmarks.rotation import sets_of

ADD_BYTES = 12.0  # a.add_(b) reads both and writes one


@dataclass(frozen=True)
class Row:
    """One way to do a case: median milliseconds, and what follows from them."""

    case: str
    way: str
    milliseconds: float
    ratio: float  # how many times faster ours is; 1 for ours
    share: float | None = None  # of the bandwidth of a.add_(b)
    target: str = ""
    work: str = ""


class Ceiling:
    """``a.add_(b)`` on as many weights as the cases have, timed between their rounds; on arrays
    beyond the cache where the cases are smaller."""

    def __init__(self, size: Size) -> None:
        self.numel = size.numel * sets_of(size.numel, size.device)
        self._left = torch.full((self.numel,), 0.0, device=size.device)
        self._right = torch.full((self.numel,), 1e-9, device=size.device)
        self.clock = clock_of(size.device)

    def call(self) -> None:
        self._left.add_(self._right)

    def bandwidth(self, seconds: float) -> float:
        """Bytes per second."""
        return ADD_BYTES * self.numel / seconds


def measure(case: Case, ceiling: Ceiling, rounds: int, skip_slow: bool) -> list[Row]:
    """Time ours, every peer and the ceiling in turn, round by round, after a warm-up."""
    peers = [peer for peer in case.peers if not (peer.slow and skip_slow)]
    quick = [peer for peer in peers if not peer.slow]
    calls = [ceiling.call, case.ours, *(peer.call for peer in quick)]
    times = _interleaved(calls, rounds, ceiling.clock)
    add, ours, *theirs = (statistics.median(t) for t in times)
    rows = [_ours_row(case, ours, ceiling.bandwidth(add))]
    rows += [
        _row(case, p, seconds, seconds / ours) for p, seconds in zip(quick, theirs, strict=True)
    ]
    for peer in peers:
        if peer.slow:
            seconds = ceiling.clock(peer.call)
            rows.append(_row(case, peer, seconds, seconds / ours))
    return rows


def _ours_row(case: Case, seconds: float, bandwidth: float) -> Row:
    share, target = None, ""
    if case.bytes is not None:
        share = case.bytes * case.numel / seconds / bandwidth
    if case.ceiling is not None and share is not None:
        target = f">= {case.ceiling:.0%} of ceiling: {_word(share >= case.ceiling)}"
    return Row(case.name, "salun-fast", seconds * 1e3, 1.0, share, target, case.work)


def _row(case: Case, peer: Peer, seconds: float, ratio: float) -> Row:
    target = f">= {peer.target:g}x: {_word(ratio >= peer.target)}" if peer.target else ""
    return Row(case.name, peer.name, seconds * 1e3, ratio, None, target, peer.work)


def _word(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _interleaved(calls: Sequence[Call], rounds: int, clock: Clock) -> list[list[float]]:
    for call in calls:
        call()
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, kept in zip(calls, times, strict=True):
            kept.append(clock(call))
    return times


def milliseconds(row: Row) -> str:
    return f"{row.milliseconds:,.1f}" if row.milliseconds >= 10 else f"{row.milliseconds:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table as it stands in the README."""
    lines = [
        "| op | way | ms | salun-fast is faster by | share of ceiling | target | work |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        own = row.way == "salun-fast"
        lines.append(
            f"| {row.case if own else ''} | {'**salun-fast**' if own else row.way} "
            f"| {milliseconds(row)} | {'' if own else f'{row.ratio:.2f}x'} "
            f"| {'' if row.share is None else f'{row.share:.0%}'} | {row.target} | {row.work} |"
        )
    return "\n".join(lines)
