"""torch.compile(fullgraph=True): the step alone, a whole training step, and measuring saliency.

"aot_eager" traces as inductor does and runs torch's own kernels, so bits can be compared; inductor
itself compiles for long and is used where it is the point.
"""

from __future__ import annotations

import contextlib
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

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


BATCH = (
    torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(4)),
    torch.tensor([0, 3, 1, 2, 2]),
)


def loss_of(model: nn.Module, scale: int = 1) -> torch.Tensor:
    x, y = BATCH
    return F.cross_entropy(model(x * scale), y)


def compiled(function, backend: str = "aot_eager"):
    """As one graph, and the count of its compilations.

    Not dynamo's error_on_recompile: it says nothing where what was compiled is thrown away first,
    as when a gradient that it was compiled for is freed.
    """
    torch._dynamo.reset()
    count = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=count), count


@contextmanager
def traced_backward():
    """torch 2.14 traces ``backward()`` where this is asked of it."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip(f"torch {torch.__version__} cannot trace backward()")
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


def gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn_like(param)


def weights_and_state(optimizer: SalUnOptimizer) -> list[torch.Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [value for param in params for value in optimizer.state[param].values()]
    return [tensor.detach().clone() for tensor in (*params, *state)]


def assert_same(found: list[list[torch.Tensor]]) -> None:
    assert len(found[0]) == len(found[1])
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", FUSED, ids=case_id)
@pytest.mark.parametrize("masked", [True, False])
def test_a_compiled_step_has_the_bits_of_an_eager_one_and_compiles_once(case: Case, masked):
    """The first step makes the state; lr changes by hand and by a scheduler; other masks come; a
    checkpoint is loaded: nothing compiles again."""
    found = []
    for graph in (False, True):
        model, optimizer = problem(case, masks(1)[0] if masked else None)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        step, count = compiled(optimizer.step) if graph else (optimizer.step, None)
        for round_ in range(6):
            gradients(model, round_)
            if round_ == 3 and masked:
                optimizer.set_mask(masks(2)[1])
            if round_ == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            step()
            optimizer.param_groups[0]["lr"].mul_(0.9)
            scheduler.step()
        assert count is None or count.frame_count == 1
        found.append(weights_and_state(optimizer))
    assert_same(found)


def test_clipping_in_the_graph_of_a_step_compiles_once():
    found = []
    for graph in (False, True):
        model, optimizer = problem(FUSED[0], masks(1)[0])

        def clipped(optimizer: SalUnOptimizer = optimizer) -> None:
            optimizer.clip_grad_norm_(0.1)
            optimizer.step()

        step, count = compiled(clipped) if graph else (clipped, None)
        for round_ in range(4):
            gradients(model, round_)
            step()
        assert count is None or count.frame_count == 1
        found.append(weights_and_state(optimizer))
    assert_same(found)


@pytest.mark.parametrize("mode", ["stochastic", "master"])
def test_half_precision_in_a_graph(mode):
    found = []
    for graph in (False, True):
        case, model = FUSED[5], Net().bfloat16()
        optimizer = SalUnOptimizer(
            model.named_parameters(), case.optimizer_class, mask=masks(1)[0], seed=3,
            half_precision=mode, **{**case.options, "lr": torch.tensor(0.02)},
        )  # fmt: skip
        step, count = compiled(optimizer.step) if graph else (optimizer.step, None)
        for round_ in range(4):
            gradients(model, round_)
            step()
        # Master copies are no zeros, so the graph of the first step makes them.
        assert count is None or count.frame_count == (2 if mode == "master" else 1)
        found.append(weights_and_state(optimizer))
    assert_same(found)


def test_a_graph_with_a_grad_scaler_skips_and_unscales():
    found = []
    for graph in (False, True):
        model, optimizer = problem(FUSED[5], masks(1)[0])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        count = None
        if graph:
            optimizer.step, count = compiled(optimizer.step)
        for round_ in range(4):
            optimizer.zero_grad()
            loss = loss_of(model) * (float("inf") if round_ == 2 else 1.0)
            scaler.scale(loss).backward()
            before = weights_and_state(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if round_ == 2:
                assert_same([before, weights_and_state(optimizer)])
        assert count is None or count.frame_count == 1
        found.append(weights_and_state(optimizer))
    assert_same(found)


def test_state_that_is_lost_or_comes_late_is_made_in_a_graph_too():
    model, optimizer = problem(FUSED[5], masks(1)[0])
    step, _ = compiled(optimizer.step, "eager")
    early = model.conv.weight
    early.grad = torch.ones_like(early)
    step()
    assert set(optimizer.state) == {early}  # as in torch: without a gradient there is no state
    gradients(model, 0)
    step()
    assert [float(s["step"]) for s in optimizer.state.values()] == [2, 1, 1, 1]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    step()
    assert [float(s["step"]) for s in optimizer.state.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_backward_through_a_value_that_a_graph_overwrote_is_an_error(backend):
    model, optimizer = problem(FUSED[0], None)
    step, _ = compiled(optimizer.step, backend)
    for round_ in range(2):
        gradients(model, round_)
        loss = (model.head.weight**2).sum()
        step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_graph_refuses_to_step_while_saliency_is_measured():
    model, optimizer = problem(FUSED[0], masks(1)[0])
    gradients(model, 0)
    before = clones([param.detach() for param in model.parameters()])
    with (
        optimizer.measure_saliency(),
        pytest.raises(torch._dynamo.exc.Unsupported, match=r"inside measure_saliency\(\)"),
    ):
        compiled(optimizer.step, "eager")[0]()
    assert_same([before, list(model.parameters())])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_step_compiled_by_inductor_follows_a_new_selection(mode):
    found = []
    for graph in (False, True):
        torch._dynamo.reset()
        model, optimizer = problem(FUSED[6], None)
        gradients(model, 0)
        step = torch.compile(optimizer.step, fullgraph=True, mode=mode) if graph else optimizer.step
        for mask in masks(3):
            optimizer.set_mask(mask)
            for _ in range(2):
                before = clones([param.detach() for param in model.parameters()])
                step()
                assert_frozen(model, before, mask)
        found.append(weights_and_state(optimizer))
    assert_same(found)


@pytest.mark.parametrize("case", [GENERAL[0], GENERAL[4]], ids=case_id)
def test_the_general_path_steps_outside_of_the_graph(case: Case):
    """With the bits of an eager step; where one graph is insisted on, the error says why."""
    found = []
    for graph in (False, True):
        torch._dynamo.reset()
        model, optimizer = problem(Case(case.name, case.optimizer_class, {"lr": 0.01}), masks(1)[0])
        gradients(model, 0)
        step = torch.compile(optimizer.step, backend="eager") if graph else optimizer.step
        for _ in range(3):
            step()
        found.append(list(model.parameters()))
    assert_same(found)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="step outside of graphs"):
        compiled(optimizer.step, "eager")[0]()


# --- a whole training step ------------------------------------------------------------------------


def last(model: nn.Module, optimizer: SalUnOptimizer):
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def first(model: nn.Module, optimizer: SalUnOptimizer):
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def zeros(model: nn.Module, optimizer: SalUnOptimizer):
    """Gradients that stay; and the norm is clipped."""

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.clip_grad_norm_(0.5, masked=True)
        optimizer.step()
        return loss.detach()

    return step


def closure(model: nn.Module, optimizer: SalUnOptimizer):
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def losses() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(losses)

    return step


LOOPS = [(last, FUSED[2], 1), (first, FUSED[5], 1), (zeros, FUSED[2], 2), (closure, FUSED[0], 1)]


@pytest.mark.parametrize(("loop", "case", "compilations"), LOOPS)
def test_a_whole_training_step_is_one_graph_with_eager_bits(loop, case: Case, compilations):
    """In ``zeros`` the first call finds no gradients, and the second does."""
    found = []
    for graph in (False, True):
        model, optimizer = problem(case, masks(1)[0])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        step = loop(model, optimizer)
        with traced_backward():
            step, count = compiled(step) if graph else (step, None)
            losses = []
            for mask in masks(2):
                optimizer.set_mask(mask)
                before = clones([param.detach() for param in model.parameters()])
                for _ in range(3):
                    losses.append(step(*BATCH))
                    scheduler.step()
                assert_frozen(model, before, mask)
        assert count is None or count.frame_count == compilations
        # Dynamo may mix up what it compiled before: see SalUnOptimizer._no_gradient.
        gradients(model, 0)
        assert (compiled(optimizer.step)[0] if graph else optimizer.step)() is None
        found.append([*losses, *weights_and_state(optimizer)])
    assert_same(found)


def test_a_whole_training_step_by_inductor():
    found = []
    for graph in (False, True):
        model, optimizer = problem(FUSED[5], masks(1)[0])
        before = clones([param.detach() for param in model.parameters()])
        step = last(model, optimizer)
        with traced_backward():
            if graph:
                step, _ = compiled(step, "inductor")
            for _ in range(3):
                step(*BATCH)
        assert_frozen(model, before, masks(1)[0])
        found.append(list(model.parameters()))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --- saliency and export --------------------------------------------------------------------------


def backward_passes(model: nn.Module) -> None:
    for scale in (1, 2, 3):
        loss_of(model, scale).backward()


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_saliency_of_a_compiled_model_is_that_of_the_model(clip_norm):
    """Gradients arrive in another order, by which the norm must not round."""
    torch._dynamo.reset()
    net = Net()
    plain = Saliency(net)
    with plain.measure(clip_norm=clip_norm):
        backward_passes(net)
    model = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    scored = Saliency(model)
    with scored.measure(clip_norm=clip_norm):
        backward_passes(model)
    with optimizer.measure_saliency(clip_norm=clip_norm) as measured:
        backward_passes(model)
    for name in plain.names:  # also without "_orig_mod."
        assert same_bytes(scored[name], plain[name])
        assert same_bytes(measured[name], plain[name])
    before = clones([param.detach() for param in model.parameters()])
    mask = optimizer.select(0.3)
    plain_mask = plain.mask(0.3)
    assert all(torch.equal(mask[name], plain_mask[name]) for name in plain.names)
    loss_of(model).backward()
    optimizer.step()
    assert_frozen(model._orig_mod, before, plain_mask)


def test_saliency_by_inductor():
    torch._dynamo.reset()
    net = Net()
    plain, scored = Saliency(net), Saliency(Net())
    with plain.measure(), scored.measure():
        loss_of(net).backward()
        torch.compile(loss_of, fullgraph=True)(scored._module).backward()
    for name in plain.names:
        torch.testing.assert_close(scored[name], plain[name], rtol=1e-4, atol=1e-6)


@contextmanager
def backward_compiled():
    """Compiled autograd: the graph that autograd made is compiled, hooks included."""
    with torch._dynamo.config.patch(compiled_autograd=True):
        yield lambda function: torch.compile(function, backend="aot_eager")


def test_saliency_where_autograd_is_compiled_too_is_refused():
    torch._dynamo.reset()
    scores = Saliency(Net())
    with (
        backward_compiled() as wrapped,
        scores.measure(),
        pytest.raises(RuntimeError, match="compiled_autograd is on"),
    ):
        wrapped(lambda net: loss_of(net).backward())(scores._module)
    with scores.measure():
        loss_of(scores._module).backward()
    assert scores.batches == 1


@pytest.mark.parametrize("case", [FUSED[5], GENERAL[0]], ids=case_id)
def test_steps_in_backward_where_autograd_is_compiled_too(case: Case):
    torch._dynamo.reset()
    found = []
    for way in (contextlib.nullcontext(lambda function: function), backward_compiled()):
        model, optimizer = problem(Case(case.name, case.optimizer_class, {"lr": 0.01}), masks(1)[0])
        with way as wrapped, optimizer.step_in_backward():
            backward = wrapped(lambda model: loss_of(model).backward())
            for _ in range(3):
                backward(model)
        found.append(list(model.parameters()))
    assert_same(found)


def test_gradients_that_pass_the_hooks_by_are_an_error():
    """Dynamo leaves hooks out of a backward() that it traces: nothing would be scored or moved."""
    model, optimizer = problem(FUSED[0], None)
    before = clones([param.detach() for param in model.parameters()])
    with traced_backward():
        traced, _ = compiled(lambda: loss_of(model).backward(), "eager")
        scores = Saliency(model)
        with (
            pytest.raises(RuntimeError, match=r"'conv.weight' got a gradient past the hooks"),
            scores.measure(),
        ):
            traced()
        with pytest.raises(RuntimeError, match="such batches are not in the scores"):
            scores.mask(0.5)
        assert all(param.grad is None for param in model.parameters())
        with (
            pytest.raises(RuntimeError, match="no step was taken by it"),
            optimizer.step_in_backward(),
        ):
            traced()
    assert_same([before, list(model.parameters())])


def test_a_model_under_the_optimizer_exports_as_before():
    model, optimizer = problem(FUSED[5], None)
    x, _ = BATCH

    def exported() -> torch.Tensor:
        program = torch.export.export(model, (x,))
        assert "salun" not in str(program.graph)
        return program.module()(x)

    with optimizer.measure_saliency():
        assert torch.equal(exported(), model(x))
        loss_of(model).backward()
        assert torch.equal(exported(), model(x))
    optimizer.select(0.5)
    loss_of(model).backward()
    optimizer.step()
    assert torch.equal(exported(), model(x))
    with optimizer.step_in_backward():
        assert torch.equal(exported(), model(x))
