"""How long a call takes: by the host's clock on a CPU, between two events of its stream on a GPU,
where a call returns before its work is done."""

from __future__ import annotations

import time

import torch

from benchmarks.case import Call

CALLS_PER_READING = 10  # on a GPU, whose queue fills while the first of them run


def seconds_of(call: Call, before: Call, device: torch.device) -> float:
    """``before`` is called first, untimed: it leaves nothing of what ``call`` needs in a cache."""
    if device.type == "cpu":
        before()
        return on_host(call)
    return between_events(call, before, device)


def on_host(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def between_events(
    call: Call, before: Call, device: torch.device, calls: int = CALLS_PER_READING
) -> float:
    """The mean of several calls: the device's time, or the host's where the host asks more slowly
    than the device works."""
    stream = torch.cuda.current_stream(device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    torch.cuda.synchronize(device)
    for begin, end in pairs:
        before()
        begin.record(stream)
        call()
        end.record(stream)
    torch.cuda.synchronize(device)
    return sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3 / calls
