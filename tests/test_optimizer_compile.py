"""SalUnOptimizer.step under torch.compile(fullgraph=True); few tests, each compiles for long."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import same_bytes
from tests.optimizer_cases import FUSED, Case, case_id


def _problem(case: Case, mask: SaliencyMask):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for param in conv.parameters():
        param.grad = torch.randn_like(param)
    options = {**case.options, "lr": torch.tensor(case.options["lr"])}
    optimizer = SalUnOptimizer(conv.named_parameters(), case.optimizer_class, mask=mask, **options)
    return conv, optimizer


def _masks(count: int) -> list[SaliencyMask]:
    torch.manual_seed(3)
    shapes = {"weight": (4, 3, 3, 3), "bias": (4,)}
    return [
        SaliencyMask.from_dict({n: torch.rand(s) < 0.5 for n, s in shapes.items()})
        for _ in range(count)
    ]


@pytest.mark.parametrize("case", [FUSED[1], FUSED[6]], ids=case_id)
def test_compiled_step_equals_eager_and_follows_a_new_selection(case: Case):
    masks = _masks(3)
    results = []
    for compiled in (False, True):
        conv, optimizer = _problem(case, masks[0])
        step = torch.compile(optimizer.step, fullgraph=True) if compiled else optimizer.step
        for mask in masks:
            optimizer.set_mask(mask)
            for _ in range(2):
                optimizer.param_groups[0]["lr"].mul_(0.9)
                before = conv.weight.detach().clone()
                step()
                assert torch.equal(conv.weight != before, mask["weight"])
        results.append([param.detach().clone() for param in conv.parameters()])
    assert all(same_bytes(a, b) for a, b in zip(*results, strict=True))
