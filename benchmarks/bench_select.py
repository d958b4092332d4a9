"""select at density 0.5: threshold and packed masks, against ways that sort or concatenate."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.case import Case, Peer, Size
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
    scores, k = size.rand(1), size.numel // 2

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

    return Case(
        "select (density 0.5)",
        lambda: ops.select(scores, k),
        "reads the scores twice, writes packed masks of exactly k bits",
        [
            Peer("double argsort", double_argsort, "SalUn's code; int64 masks", 200, slow=True),
            Peer("torch.kthvalue", kthvalue, "bool mask, too many bits at ties", 15, slow=True),
            Peer("torch.topk", topk, "bool mask, arbitrary ties", slow=True),
        ],
        size.numel,
    )


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


def test_select(timed):
    timed(case)
