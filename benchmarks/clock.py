"""How long a call takes: by the host's clock on a CPU, between two events of its stream on a GPU,
where a call returns before its work is done."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.case import Call

Clock = Callable[[Call], float]  # seconds per call

# Between one pair of events: enough for the queue to fill, so that what is measured is the longer
# of the two, the device's work or the host's time to ask for it.
CALLS_PER_EVENT = 10


def clock_of(device: torch.device) -> Clock:
    if device.type == "cpu":
        return on_host
    return lambda call: between_events(call, device)


def on_host(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def between_events(call: Call, device: torch.device, calls: int = CALLS_PER_EVENT) -> float:
    stream = torch.cuda.current_stream(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record(stream)
    for _ in range(calls):
        call()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls
