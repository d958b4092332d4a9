"""The benchmarks run, compare like with like, and hide no miss."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks import bench_select
from benchmarks.case import Case, Peer, Size
from benchmarks.table import Ceiling, markdown, measure
from salun_fast import bits

SIZE = Size(40_000, 4)


def test_the_whole_table_is_written(tmp_path):
    out = tmp_path / "table.md"
    small = ["--numel", "40000", "--tensors", "4", "--rounds", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *small], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    for word in (
        "accumulate_", "masked_sgd_", "masked_adam_", "select", "soft_threshold_", "SalUnOptimizer",
        "torch._foreach_add_", "grad *= mask (bool) + AdamW(fused)",
        "grad *= mask (float) + SGD(fused)",
        "double argsort", "torch.kthvalue", "of ceiling", "extra memory", "torch: ", "cores: ",
    ):  # fmt: skip
        assert word in text, word
    assert text.count("**salun-fast**") == 7


def test_a_miss_is_called_a_miss():
    fast, slow = (lambda: None), (lambda: torch.zeros(300_000).sort())
    case = Case("x", slow, "", [Peer("y", fast, target=2)], bytes=12, ceiling=0.8)
    rows = measure(case, Ceiling(SIZE), rounds=2, skip_slow=False)
    assert [row.target.endswith("MISSED") for row in rows] == [True, True]
    assert markdown(rows).count("MISSED") == 2


def test_all_ways_to_select_choose_the_same_weights():
    """Ties aside, which normal scores do not have."""
    case = bench_select.case(SIZE)
    words, _ = case.ours()
    sort, kth, topk = (peer.call() for peer in case.peers)
    ours = [bits.unpack(w, (SIZE.numel // SIZE.tensors,)) for w in words]
    assert torch.equal(torch.cat(ours), kth)
    assert torch.equal(torch.cat(sort).bool(), kth)
    assert torch.equal(topk, kth)
    assert sum(int(m.bool().sum()) for m in sort) == SIZE.numel // 2
