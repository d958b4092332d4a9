"""Ours, its peers and the ceiling, timed in turn, and what follows from the times."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch

from benchmarks import clock, memory
from benchmarks.case import CPU, Call, Case, Peer

ADD_BYTES = 12.0  # a.add_(b) reads both and writes one
BEYOND_CACHES = 64_000_000  # weights: 512 MB in two arrays
SLOW_LIMIT = 100_000_000  # weights that a slow peer gets at most
OURS = "salun-fast"


@dataclass(frozen=True)
class Verdict:
    """What was meant to be, what was found, and whether that is reached."""

    target: str
    found: str
    reached: bool


@dataclass(frozen=True)
class Row:
    """One way to do a case.

    seconds: the median, or None where ``skipped`` says why there is none. ratio: how many times
    faster ours is; 1 for ours. share: of the bandwidth of a.add_(b). memory: bytes it takes beside
    weights, gradients and dense state, kept or for a while. floor: seconds that moving the bytes
    takes at the ceiling's bandwidth.
    """

    way: str
    seconds: float | None
    ratio: float | None = None
    share: float | None = None
    memory: float | None = None
    floor: float | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    work: str = ""
    skipped: str = ""

    @property
    def own(self) -> bool:
        return self.way == OURS


class Ceiling:
    """``a.add_(b)`` on arrays beyond every cache, which also drives all else out of the caches."""

    def __init__(self, numel: int = BEYOND_CACHES, device: torch.device = CPU) -> None:
        self.numel, self.device = numel, device
        self._left = torch.full((numel,), 0.0, device=device)
        self._right = torch.full((numel,), 1e-9, device=device)

    def call(self) -> None:
        self._left.add_(self._right)

    def seconds(self) -> float:
        return clock.seconds_of(self.call, _nothing, self.device)

    def bandwidth(self, seconds: float) -> float:
        """Bytes per second."""
        return ADD_BYTES * self.numel / seconds


class Trial:
    """``warm_up()``, then per round ``time_others()`` and one call of ours, then ``rows()``.

    The ceiling comes before every way, so that none finds its data in a cache which the one before
    has filled; ``Case.cold`` says where that is not wanted.
    """

    def __init__(self, case: Case, ceiling: Ceiling, skip_slow: bool = False) -> None:
        self._case, self._ceiling = case, ceiling
        self._skipped = {p.name: why for p in case.peers if (why := _why_not(p, case, skip_slow))}
        self._quick = [p for p in case.peers if not p.slow and p.name not in self._skipped]
        self._times: dict[str, list[float]] = {p.name: [] for p in case.peers}
        self._memory: dict[str, float] = {}
        self._adds: list[float] = []
        self.ours: list[float] = []  # as the device's events tell; the host's clock is elsewhere

    def warm_up(self) -> None:
        """Optimizers make their state, and peers their masks, at the first call; what a call takes
        is measured at the second."""
        case = self._case
        self.call_ours()
        self._measure_memory(OURS, self.call_ours, case.keeps)
        for peer in list(self._quick):
            if why := self._no_room(peer):
                self._skipped[peer.name] = why
                self._quick.remove(peer)
                continue
            peer.call()
            self._measure_memory(peer.name, peer.call, peer.keeps)

    @property
    def median_of_ours(self) -> float | None:
        return statistics.median(self.ours) if self.ours else None

    def time_others(self) -> None:
        """One round, but for our call, for which all is left ready."""
        self._adds.append(self._ceiling.seconds())
        for peer in self._quick:
            self._times[peer.name].append(self._seconds(peer.call))
        if self._ceiling.device.type != "cpu":
            self.ours.append(self._seconds(self._case.ours))
        self._ready_ours()

    def call_ours(self) -> None:
        self._ready_ours()
        self._case.ours()

    def time_slow(self) -> None:
        """Once, time and memory in the same call."""
        for peer in self._case.peers:
            if not peer.slow or peer.name in self._skipped:
                continue
            if why := self._no_room(peer):
                self._skipped[peer.name] = why
                continue
            timed = lambda call=peer.call, kept=self._times[peer.name]: kept.append(  # noqa: E731
                self._seconds(call)
            )
            self._measure_memory(peer.name, timed, peer.keeps)

    def rows(self, ours: float) -> list[Row]:
        """``ours``: the median seconds of our call."""
        bandwidth = self._ceiling.bandwidth(statistics.median(self._adds))
        rows = [self._own_row(ours, bandwidth)]
        return rows + [self._peer_row(peer, ours) for peer in self._case.peers]

    def _own_row(self, seconds: float, bandwidth: float) -> Row:
        case, floor, share, taken = self._case, None, None, self._memory.get(OURS)
        verdicts = []
        if case.bytes is not None:
            floor = case.bytes * case.numel / bandwidth
            share = floor / seconds
        if case.ceiling is not None and share is not None:
            verdicts.append(_at_least(f"{case.ceiling:.0%} of the ceiling", f"{share:.0%}",
                                      share >= case.ceiling))  # fmt: skip
        if case.memory is not None and taken is not None:
            verdicts.append(_at_most(f"{megabytes(case.memory)} MB extra memory",
                                     f"{megabytes(taken)} MB", taken <= case.memory))  # fmt: skip
        if case.limit is not None:
            verdicts.append(_at_most(duration(case.limit), duration(seconds),
                                     seconds <= case.limit))  # fmt: skip
        return Row(OURS, seconds, 1.0, share, taken, floor, verdicts, case.work)

    def _peer_row(self, peer: Peer, ours: float) -> Row:
        if peer.name in self._skipped:
            return Row(peer.name, None, work=peer.work, skipped=self._skipped[peer.name])
        seconds = statistics.median(self._times[peer.name])
        taken = self._memory.get(peer.name)
        verdicts = list(_against(peer, ours, seconds))
        own = self._memory.get(OURS)
        if peer.memory is not None and taken and own is not None:
            verdicts.append(_at_most(f"{peer.memory:g}x its extra memory", f"{own / taken:.2f}x",
                                     own <= peer.memory * taken))  # fmt: skip
        return Row(
            peer.name, seconds, seconds / ours, memory=taken, verdicts=verdicts, work=peer.work
        )

    def _measure_memory(self, way: str, call: Call, keeps: float) -> None:
        if not self._case.numel:
            return
        grown = memory.growth(call, self._ceiling.device)
        self._memory[way] = grown + keeps * self._case.numel

    def _no_room(self, peer: Peer) -> str:
        why = memory.no_room(peer.needs * self._case.numel, self._ceiling.device)
        return why and f"not run: {why}"

    def _ready_ours(self) -> None:
        if self._case.before is not None:
            self._case.before()
        if self._case.cold:
            self._evict()

    def _seconds(self, call: Call) -> float:
        before = self._evict if self._case.cold else _nothing
        return clock.seconds_of(call, before, self._ceiling.device)

    def _evict(self) -> None:
        if self._ceiling.device.type == "cpu":
            self._adds.append(self._ceiling.seconds())
        else:
            self._ceiling.call()


def measure(case: Case, ceiling: Ceiling, rounds: int, skip_slow: bool = False) -> list[Row]:
    """All of it at once, without pytest-benchmark."""
    trial = Trial(case, ceiling, skip_slow)
    trial.warm_up()
    for _ in range(rounds):
        trial.time_others()
        if ceiling.device.type == "cpu":
            trial.ours.append(clock.on_host(case.ours))
    trial.time_slow()
    return trial.rows(statistics.median(trial.ours))


def _why_not(peer: Peer, case: Case, skip_slow: bool) -> str:
    if peer.missing:
        return f"not run: {peer.missing}"
    if peer.slow and skip_slow:
        return "not run: --skip-slow"
    if peer.slow and case.numel > SLOW_LIMIT:
        return f"not run: slow, and so timed up to {SLOW_LIMIT:,} weights only"
    return ""


def _against(peer: Peer, ours: float, seconds: float) -> list[Verdict]:
    found = []
    if peer.target is not None:
        reached = seconds >= peer.target * ours
        if peer.target <= 1:
            found.append(_at_most(f"{1 / peer.target:.3g}x its time", f"{ours / seconds:.2f}x",
                                  reached))  # fmt: skip
        else:
            found.append(_at_least(f"{peer.target:g}x faster", f"{seconds / ours:.2f}x", reached))
    if peer.margin is not None:
        over = ours - seconds
        found.append(_at_most(f"{duration(peer.margin)} longer", duration(over),
                              over <= peer.margin))  # fmt: skip
    return found


def _at_least(what: str, found: str, reached: bool) -> Verdict:
    return Verdict(f"≥ {what}", found, reached)


def _at_most(what: str, found: str, reached: bool) -> Verdict:
    return Verdict(f"≤ {what}", found, reached)


def duration(seconds: float) -> str:
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{milliseconds(seconds)} ms"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}" if seconds >= 1e-2 else f"{seconds * 1e3:.3g}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def _nothing() -> None:
    return None


def ceiling_for(device: torch.device, scale: float) -> Ceiling:
    return Ceiling(max(1000, round(BEYOND_CACHES * scale)), device)
