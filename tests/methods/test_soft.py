"""SalUn-soft's proximal step (ACCEPTANCE B10) and its schedule."""

import torch
from torch import nn

from salun_fast.methods.soft import SoftThreshold


def perturbed(anchor="original", density=0.4, total=10):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    soft = SoftThreshold(model, density=density, anchor=anchor, total_steps=total)
    move(model)
    return model, before, soft


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_b10_smallest_changes_snap_back_and_the_others_shrink():
    model, before, soft = perturbed()
    moved = flat(model)
    soft.after_step(0)
    k = 58 - int(58 * 0.4)
    change = moved - before
    tau = change.abs().sort().values[k - 1]
    assert int((flat(model) == before).sum()) >= k
    torch.testing.assert_close(
        flat(model), before + change.sign() * (change.abs() - tau).clamp(min=0)
    )


def test_b10_holds_for_channels_last_weights():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    before = model.weight.detach().clone()
    soft = SoftThreshold(model, density=0.5, anchor="original", total_steps=4)
    move(model)
    change = model.weight.detach() - before
    soft.after_step(0)
    tau = change.abs().flatten().sort().values[53]
    expected = before + change.sign() * (change.abs() - tau).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_b10_share_that_snaps_back_falls_linearly_to_zero():
    kept = []
    for step in range(11):
        model, before, soft = perturbed()
        moved = flat(model)
        soft.after_step(step)
        kept.append(int((flat(model) == before).sum()))
    assert kept == [int(35 * (10 - step) / 10) for step in range(11)]
    assert torch.equal(flat(model), moved)  # after the last step nothing snaps back


def test_reference_anchors_anew_at_every_epoch_and_paper_never():
    for anchor in ("original", "epoch"):
        model, before, soft = perturbed(anchor)
        moved = flat(model)
        soft.start_epoch()
        move(model)
        soft.after_step(0)
        expected = before if anchor == "original" else moved
        assert int((flat(model) == expected).sum()) >= 35
