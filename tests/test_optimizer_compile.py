"""torch.compile(fullgraph=True): the step alone, a whole training step, and measuring saliency.

"aot_eager" traces as inductor does and runs torch's own kernels, so bits can be compared; inductor
itself compiles for long and is used where it is the point.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from salun_fast.saliency import Saliency
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import FUSED, GENERAL, Case, case_id


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv(x)).flatten(1))


def masks(count: int) -> list[SaliencyMask]:
    torch.manual_seed(3)
    shapes = {name: param.shape for name, param in Net().named_parameters()}
    return [
        SaliencyMask.from_dict({n: torch.rand(s) < 0.5 for n, s in shapes.items()})
        for _ in range(count)
    ]


def problem(case: Case, mask: SaliencyMask | None, **options):
    """Two groups; the learning rate is a tensor, as it must be to change without recompiling."""
    model = Net()
    groups = [
        {"params": list(model.conv.named_parameters("conv"))},
        {"params": list(model.head.named_parameters("head")), "weight_decay": 0.2},
    ]
    settings = {**case.options, "lr": torch.tensor(case.options["lr"])}
    return model, SalUnOptimizer(groups, case.optimizer_class, mask=mask, **settings, **options)


def batch():
    torch.manual_seed(1)
    return torch.randn(5, 3, 8, 8), torch.randint(0, 4, (5,))


@contextmanager
def no_recompilation():
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@contextmanager
def traced_backward():
    """torch 2.14 traces ``backward()`` where this is asked of it."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip(f"torch {torch.__version__} cannot trace backward()")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def assert_frozen(model: nn.Module, before: list[torch.Tensor], mask: SaliencyMask) -> None:
    """Moved weights are selected ones, and some moved."""
    moved = 0
    for (name, param), old in zip(model.named_parameters(), before, strict=True):
        changed = param.detach() != old
        assert not bool((changed & ~mask[name]).any()), name
        moved += int(changed.sum())
    assert moved


# --- the step alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FUSED, ids=case_id)
@pytest.mark.parametrize("masked", [True, False])
def test_a_compiled_step_has_the_bits_of_an_eager_one_and_compiles_once(case: Case, masked):
    """lr changes by hand and by a scheduler, and steps go by, without compiling again."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, optimizer = problem(case, masks(1)[0] if masked else None)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        step = optimizer.step
        if compiled:
            step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
        for round_ in range(5):
            torch.manual_seed(round_)
            for param in model.parameters():
                param.grad = torch.randn_like(param)
            if round_ < 2:  # the first step makes the state, the second finds it
                step()
            else:
                with no_recompilation():
                    step()
            optimizer.param_groups[0]["lr"].mul_(0.9)
            scheduler.step()
        state = [v for p in model.parameters() for v in optimizer.state[p].values()]
        found.append([*model.parameters(), *state])
    assert len(found[0]) == len(found[1])
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", [FUSED[1], FUSED[6]], ids=case_id)
def test_a_step_compiled_by_inductor_follows_a_new_selection(case: Case):
    found = []
    for compiled in (False, True):
        model, optimizer = problem(case, None)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        step = torch.compile(optimizer.step, fullgraph=True) if compiled else optimizer.step
        for mask in masks(3):
            optimizer.set_mask(mask)
            for _ in range(2):
                before = clones([param.detach() for param in model.parameters()])
                step()
                assert_frozen(model, before, mask)
        found.append(list(model.parameters()))
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", [GENERAL[0], GENERAL[4]], ids=case_id)
def test_the_general_path_steps_outside_of_the_graph(case: Case):
    """With the bits of an eager step; where one graph is insisted on, the error says why."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, optimizer = problem(Case(case.name, case.optimizer_class, {"lr": 0.01}), masks(1)[0])
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            step()
        found.append(list(model.parameters()))
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(*found, strict=True))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="other classes step outside of graphs"):
        torch.compile(optimizer.step, fullgraph=True, backend="eager")()


# --- a whole training step ------------------------------------------------------------------------


def training_step(model: nn.Module, optimizer: SalUnOptimizer):
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


@pytest.mark.parametrize("case", [FUSED[2], FUSED[5]], ids=case_id)
def test_a_whole_training_step_is_one_graph_with_eager_bits(case: Case):
    found = []
    for compiled in (False, True):
        model, optimizer = problem(case, masks(1)[0])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        step = training_step(model, optimizer)
        before = clones([param.detach() for param in model.parameters()])
        with traced_backward():
            if compiled:
                step = torch.compile(step, fullgraph=True, backend="aot_eager")
            losses = [step(*batch()) for _ in range(2)]
            scheduler.step()
            with no_recompilation():
                losses += [step(*batch()) for _ in range(3)]
            assert_frozen(model, before, masks(1)[0])
            other = masks(2)[1]
            optimizer.set_mask(other)
            before = clones([param.detach() for param in model.parameters()])
            losses.append(step(*batch()))
            assert_frozen(model, before, other)
        assert all(param.grad is None for param in model.parameters())
        found.append([*losses, *model.parameters()])
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(*found, strict=True))


def test_a_whole_training_step_by_inductor():
    case, found = FUSED[5], []
    for compiled in (False, True):
        model, optimizer = problem(case, masks(1)[0])
        before = clones([param.detach() for param in model.parameters()])
        step = training_step(model, optimizer)
        with traced_backward():
            if compiled:
                step = torch.compile(step, fullgraph=True)
            for _ in range(3):
                step(*batch())
        assert_frozen(model, before, masks(1)[0])
        found.append(list(model.parameters()))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --- saliency and export --------------------------------------------------------------------------


def test_saliency_of_a_compiled_model_is_that_of_the_model():
    torch._dynamo.reset()
    x, y = batch()
    plain = Saliency(Net())
    with plain.measure():
        F.cross_entropy(plain._module(x), y).backward()
    model = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    scored = Saliency(model)
    with scored.measure():
        F.cross_entropy(model(x), y).backward()
    with optimizer.measure_saliency() as measured:
        F.cross_entropy(model(x), y).backward()
    for name in plain.names:  # also without "_orig_mod."
        assert same_bytes(scored[name], plain[name])
        assert same_bytes(measured[name], plain[name])
    before = clones([param.detach() for param in model.parameters()])
    mask = optimizer.select(0.3)
    plain_mask = plain.mask(0.3)
    assert all(torch.equal(mask[name], plain_mask[name]) for name in plain.names)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert_frozen(model._orig_mod, before, plain_mask)


def test_a_model_under_the_optimizer_exports_as_before():
    model, optimizer = problem(FUSED[5], None)
    x, y = batch()

    def exported() -> torch.Tensor:
        program = torch.export.export(model, (x,))
        assert "salun" not in str(program.graph)
        return program.module()(x)

    with optimizer.measure_saliency():
        assert torch.equal(exported(), model(x))
        F.cross_entropy(model(x), y).backward()
        assert torch.equal(exported(), model(x))
    optimizer.select(0.5)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert torch.equal(exported(), model(x))
    with optimizer.step_in_backward():
        assert torch.equal(exported(), model(x))
