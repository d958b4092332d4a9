"""Steps taken as gradients arrive: the bits of ordinary steps, and no gradient kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import MaskNotApplied, SalUnOptimizer
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import EVERY, Case, case_id


class Net(nn.Module):
    """With a weight used twice, one never used, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(5))
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(torch.tanh(self.first(x)))))


def problem(case: Case, **options):
    torch.manual_seed(0)
    model = Net()
    mask = SaliencyMask.from_dict(
        {name: torch.rand(param.shape) < 0.5 for name, param in model.named_parameters()}
    )
    groups = [
        {"params": list(model.first.named_parameters("first")), "lr": 0.03},
        {"params": [pair for pair in model.named_parameters() if "first" not in pair[0]]},
    ]
    return model, case.salun(groups, mask=mask, **options)


def losses(model: nn.Module, steps: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield model(torch.randn(8, 6, generator=generator)).square().sum()


@pytest.mark.parametrize("case", EVERY, ids=case_id)
def test_weights_and_state_have_the_bits_of_ordinary_steps(case: Case):
    found = []
    for in_backward in (False, True):
        model, optimizer = problem(case)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        if in_backward:
            with optimizer.step_in_backward():
                for loss in losses(model, 4):
                    loss.backward()
                    assert all(param.grad is None for param in model.parameters())
                    optimizer.step()  # as the loop always did: nothing is left to do
                    scheduler.step()
        else:
            for loss in losses(model, 4):
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        state = [
            value
            for param in model.parameters()
            for value in optimizer.state.get(param, {}).values()
            if isinstance(value, torch.Tensor)
        ]
        found.append([*clones([p.detach() for p in model.parameters()]), *state])
    assert len(found[0]) == len(found[1])
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


def test_at_most_one_gradient_exists_at_a_time():
    model, optimizer = problem(EVERY[0])
    alive = []

    def count(_: torch.Tensor) -> None:
        alive.append(sum(param.grad is not None for param in model.parameters()))

    with optimizer.step_in_backward():
        for param in model.parameters():
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(count)  # runs after the step's
        for loss in losses(model, 2):
            loss.backward()
    assert alive == [0] * len(alive)
    assert len(alive) == 2 * 5


def test_afterwards_backward_leaves_gradients_again():
    model, optimizer = problem(EVERY[0])
    with optimizer.step_in_backward():
        pass
    before = model.first.weight.detach().clone()
    next(losses(model, 1)).backward()
    assert model.first.weight.grad is not None
    assert torch.equal(model.first.weight, before)


def test_what_needs_all_gradients_is_refused():
    model, optimizer = problem(EVERY[0])
    with optimizer.step_in_backward():
        with pytest.raises(RuntimeError, match="clip_grad_norm_ needs all gradients at once"):
            optimizer.clip_grad_norm_(1.0)
        with (
            pytest.raises(RuntimeError, match="already active"),
            optimizer.step_in_backward(),
        ):
            pass
    _, strict = problem(EVERY[0], error_if_nonfinite=True)
    with (
        pytest.raises(ValueError, match="expected error_if_nonfinite=False"),
        strict.step_in_backward(),
    ):
        pass
    before = clones([param.detach() for param in model.parameters()])
    with (
        optimizer.step_in_backward(),
        pytest.raises(RuntimeError, match="called inside measure_saliency"),
        optimizer.measure_saliency(),
    ):
        optimizer.step()
    assert all(same_bytes(a.detach(), b) for a, b in zip(model.parameters(), before, strict=True))


def test_saliency_measured_within_moves_nothing():
    model, optimizer = problem(EVERY[0])
    before = clones([param.detach() for param in model.parameters()])
    with optimizer.measure_saliency() as saliency, optimizer.step_in_backward():
        next(losses(model, 1)).backward()
    assert saliency.batches == 1
    assert all(same_bytes(a.detach(), b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_mask_is_checked_in_backward_too(monkeypatch):
    model, optimizer = problem(EVERY[0])
    monkeypatch.setattr(
        SalUnOptimizer,
        "_fused_step",
        lambda self, work: [item.param.add_(1) for pairs in work for item, _ in pairs],
    )
    with optimizer.step_in_backward(), pytest.raises(MaskNotApplied):
        next(losses(model, 1)).backward()


@pytest.mark.parametrize("case", [EVERY[0], EVERY[7]], ids=case_id)
def test_gradients_left_over_from_before_are_nobodys_step(case: Case):
    """A wrapped class would step every parameter that has one, unmasked."""
    found = []
    for left_over in (False, True):
        model, optimizer = problem(case)
        before = clones([param.detach() for param in model.parameters()])
        if left_over:
            for param in model.parameters():
                param.grad = torch.zeros_like(param)
        with optimizer.step_in_backward():
            next(losses(model, 1)).backward()
        for (name, param), old in zip(model.named_parameters(), before, strict=True):
            assert not bool(((param.detach() != old) & ~optimizer.mask[name]).any()), name
        found.append(clones([param.detach() for param in model.parameters()]))
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))
