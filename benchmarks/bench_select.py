"""select at density 0.5: threshold and packed masks, against ways that sort or concatenate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.case import Case, Make, Peer, Size
from salun_fast import ops

# The kernel's own high-water mark, reset just before: ru_maxrss would include the parent's.
_MEMORY = """
from benchmarks.case import Size
from salun_fast import ops
def kilobytes(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field))
size = Size({numel}, {tensors})
scores = size.rand(1)
ops.select([scores[0][:1000]], 10)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = kilobytes("VmRSS")
masks, _ = ops.select(scores, size.numel // 2)
print((kilobytes("VmHWM") - before) * 1024)
"""


def case(size: Size) -> Case:
    scores, k, on_host = size.rand(1), size.numel // 2, size.device.type == "cpu"

    def double_argsort() -> object:
        """The reference: ranks of all scores, and an int64 mask per tensor."""
        flat = -torch.cat([score.abs().flatten() for score in scores])
        ranks = torch.argsort(torch.argsort(flat))
        chosen = torch.where(ranks < k, 1, 0)
        return torch.split(chosen, [score.numel() for score in scores])

    def kthvalue() -> object:
        flat = torch.cat([score.abs().flatten() for score in scores])
        return flat >= flat.kthvalue(flat.numel() - k + 1).values

    def topk() -> object:
        flat = torch.cat([score.abs().flatten() for score in scores])
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.topk(k, sorted=False).indices] = True
        return chosen

    def partition() -> object:
        flat = np.concatenate([score.abs().numpy().ravel() for score in scores])
        return flat >= np.partition(flat, -k)[-k]

    return Case(
        "select (density 0.5)",
        lambda: ops.select(scores, k),
        "reads the scores once, writes packed masks of exactly k bits",
        [
            Peer("double argsort", double_argsort, "SalUn's code; int64 masks", 200, slow=True),
            Peer("torch.kthvalue", kthvalue, "bool mask, too many bits at ties", 15, slow=True),
            Peer("torch.topk", topk, "bool mask, arbitrary ties", slow=True),
            *([Peer("numpy.partition", partition, "as kthvalue", slow=True)] if on_host else []),
        ],
        size.numel,
        bytes=4 + 1 / 8,
    )


# Scores that mislead a sample or crowd the cut, made from normal ones and the position in the list.
FAMILIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all equal": lambda s, _: torch.full_like(s, 0.5),
    "two values": lambda s, _: torch.where(s > 0, 1.0, 2.0),
    "ascending": lambda s, i: i + torch.arange(s.numel(), device=s.device) / s.numel(),
    "1 % distinct": lambda s, _: _distinct(s, s.numel() // 100 + 1),
    "subnormal": lambda s, _: s * 1e-39,
    "99 % zeros": lambda s, _: torch.where(s.abs() > 2.5758, s, 0.0),
    "ties at the cut": lambda s, _: torch.where((s.abs() - 0.6745).abs() < 0.1, 0.6745, s),
}


def _distinct(like: Tensor, values: int) -> Tensor:
    return torch.arange(like.numel(), device=like.device).mul_(7919).remainder_(values).float()


def _family(name: str) -> Make:
    """select on such scores; its peer is select itself on normal ones."""

    def family(size: Size) -> Case:
        normal, k = size.rand(1), size.numel // 2
        scores = [FAMILIES[name](score, i) for i, score in enumerate(normal)]
        easy = Peer("select, normal scores", lambda: ops.select(normal, k), "the same op", 1 / 3)
        work = "as on normal scores; ties may ask for parts of a second read"
        return Case(f"select, {name}", lambda: ops.select(scores, k), work, [easy], size.numel)

    return family


FAMILY_CASES = tuple(map(_family, FAMILIES))


def memory_note(size: Size) -> str:
    """Growth of the peak memory over one select."""
    used = _process_growth(size) if size.device.type == "cpu" else _allocator_growth(size)
    mask = size.numel / 8
    allowed = mask + 0.05 * 4 * size.numel
    return (
        f"select, extra memory: {used / 1e6:.1f} MB for the masks ({mask / 1e6:.1f} MB) and all it "
        f"needs on the way; allowed {allowed / 1e6:.1f} MB (N/8 bytes + 5 % of the scores): "
        f"{'reached' if used <= allowed else 'MISSED'}"
    )


def _process_growth(size: Size) -> int:
    """Of the resident memory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY.format(numel=size.numel, tensors=size.tensors)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _allocator_growth(size: Size) -> int:
    """Of what torch's allocator has handed out on the GPU."""
    scores = size.rand(1)
    torch.cuda.reset_peak_memory_stats(size.device)
    before = torch.cuda.memory_allocated(size.device)
    ops.select(scores, size.numel // 2)
    return torch.cuda.max_memory_allocated(size.device) - before


@pytest.mark.parametrize("make", [case, *FAMILY_CASES])
def test_select(timed, make):
    timed(make)
