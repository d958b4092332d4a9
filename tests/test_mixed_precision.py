"""Autocast, GradScaler, master copies and stochastic rounding, as a training loop meets them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.half_precision import drift
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import (
    FUSED,
    GENERAL,
    Case,
    case_id,
    give_gradients,
    kept,
    mask_of,
    named,
    parameters,
    run,
)

SOME = [FUSED[2], FUSED[6]]
MODES = ["nearest", "master", "stochastic"]


def everything(params, optimizer) -> list[torch.Tensor]:
    state = [v for p in params for v in optimizer.state.get(p, {}).values()]
    return [p.detach() for p in params] + state


# --- autocast and GradScaler ----------------------------------------------------------------------


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype)


def half_mask(model: nn.Module) -> SaliencyMask:
    torch.manual_seed(5)
    return SaliencyMask.from_dict(
        {name: torch.rand(param.shape) < 0.5 for name, param in model.named_parameters()}
    )


def scaled_step(model, optimizer, scaler, dtype, x, factor=1.0) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = F.cross_entropy(model(x), torch.arange(len(x)) % 3) * factor
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=case_id)
@pytest.mark.parametrize("case", [FUSED[2], FUSED[6], GENERAL[0]], ids=case_id)
def test_scaled_steps_under_autocast_equal_unscaled_ones(case: Case, dtype):
    """The scale is a power of two: dividing by it loses nothing."""
    found = []
    for enabled in (False, True):
        model = small_model()
        mask = half_mask(model)
        optimizer = case.salun(list(model.named_parameters()), mask=mask)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        before = clones([p.detach() for p in model.parameters()])
        torch.manual_seed(1)
        for _ in range(4):
            scaled_step(model, optimizer, scaler, dtype, torch.randn(9, 6))
        for (name, param), old in zip(model.named_parameters(), before, strict=True):
            assert not bool(((param != old) & ~mask[name]).any())
        found.append(everything(list(model.parameters()), optimizer))
    if dtype == torch.float16:  # gradients that underflow without a scale do not with it
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
    else:
        assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_a_skipped_step_changes_nothing_and_the_scale_recovers(case: Case, mode):
    """Overflow at the first step (no state yet) and later; random bits are not used up."""
    found = []
    for overflows in (False, True):
        model = small_model(torch.bfloat16)
        params = list(model.parameters())
        optimizer = case.salun(list(model.named_parameters()), mask=half_mask(model),
                               half_precision=mode)  # fmt: skip
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        torch.manual_seed(1)
        for step in range(3):
            x = torch.randn(9, 6).to(torch.bfloat16)
            if overflows:
                before = clones([p.detach() for p in params])
                counted = [float(optimizer.state[p]["step"]) for p in params if optimizer.state[p]]
                scale = scaler.get_scale()
                scaled_step(model, optimizer, scaler, torch.bfloat16, x, float("inf"))
                assert all(same_bytes(p.detach(), b) for p, b in zip(params, before, strict=True))
                assert [
                    float(optimizer.state[p]["step"]) for p in params if optimizer.state[p]
                ] == (counted or [0.0] * len(params))
                assert scaler.get_scale() == scale / 2
                scaler.update(scale)
            scaled_step(model, optimizer, scaler, torch.bfloat16, x)
            assert scaler.get_scale() == 2048.0 * 2**step
        found.append(everything(params, optimizer))
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


# --- bf16 and fp16 parameters ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=case_id)
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_masters_follow_fp32_training_and_parameters_are_their_rounding(case: Case, dtype):
    params = parameters(dtype)
    masks = kept(params)
    frozen = clones([p.detach() for p in params])
    whole = [nn.Parameter(p.detach().float()) for p in params]
    optimizer = case.salun(named(params), mask=mask_of(masks), half_precision="master")
    reference = case.salun(named(whole), mask=mask_of(masks))
    for step in range(4):
        give_gradients(params, step)
        for p, w in zip(params, whole, strict=True):
            w.grad = None if p.grad is None else p.grad.float()
        optimizer.step()
        reference.step()
    for p, w, old, mask in zip(params, whole, frozen, masks, strict=True):
        assert same_bytes(optimizer.state[p]["master_param"], w.detach())
        assert same_bytes(p.detach(), torch.where(mask, w.detach().to(dtype), old))


@pytest.mark.parametrize("mode", ["master", "stochastic"])
@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_a_resumed_run_is_bit_equal_and_so_are_copies(case: Case, mode):
    whole = parameters(torch.bfloat16)
    mask = mask_of(kept(whole))
    options = {"half_precision": mode, "seed": 7}
    left = case.salun(named(whole), mask=mask, **options)
    run(left, whole, range(3))
    params = [nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in whole]
    second = case.salun(named(params), **options)
    second.load_state_dict(copy.deepcopy(left.state_dict()))
    copied, copied_params = copy.deepcopy((left, whole))
    for optimizer, own in ((left, whole), (second, params), (copied, copied_params)):
        run(optimizer, own, range(3, 6))
    for twin, own in ((second, params), (copied, copied_params)):
        pairs = zip(everything(whole, left), everything(own, twin), strict=True)
        assert all(same_bytes(a, b) for a, b in pairs)


def test_a_checkpoint_of_another_mode_loads():
    """Masters appear from the parameters, and go where they are not kept."""
    params = parameters(torch.bfloat16)
    by_master = FUSED[5].salun(named(params), half_precision="master")
    run(by_master, params, range(2, 4))
    nearest = FUSED[5].salun(named(params))
    nearest.load_state_dict(by_master.state_dict())
    assert all("master_param" not in nearest.state[p] for p in params)
    run(nearest, params, range(4, 5))
    again = FUSED[5].salun(named(params), half_precision="master")
    again.load_state_dict(nearest.state_dict())
    before = [p.detach().float() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    again.param_groups[0]["lr"] = 0.0
    again.step()
    for p, old in zip(params, before, strict=True):
        assert same_bytes(again.state[p]["master_param"], old)


def test_seeds_differ_and_repeat():
    def trained(seed: int) -> list[torch.Tensor]:
        params = parameters(torch.bfloat16)
        run(FUSED[2].salun(named(params), half_precision="stochastic", seed=seed), params, range(3))
        return [p.detach() for p in params]

    first, again, other = trained(1), trained(1), trained(2)
    assert all(map(same_bytes, first, again))
    assert not all(map(same_bytes, first, other))


def test_a_bf16_run_whose_updates_are_below_half_an_ulp():
    """Nearest rounding stalls; a master copy and stochastic rounding follow fp32."""
    found = drift(steps=2000)
    assert found["nearest"] == 1.0
    assert abs(found["fp32"] - 0.8) < 1e-3
    assert abs(found["master"] - found["fp32"]) < 2**-8
    assert abs(found["stochastic"] - found["fp32"]) < 2e-3


@pytest.mark.parametrize("mode", ["master", "stochastic"])
def test_a_compiled_step_has_the_bits_of_an_eager_one(mode):
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = parameters(torch.bfloat16)
        optimizer = FUSED[5].salun(named(params), mask=mask_of(kept(params)), half_precision=mode)
        step = optimizer.step
        if compiled:
            step = torch.compile(step, fullgraph=True, backend="aot_eager")
        for round_ in (2, 3):  # all have a gradient
            give_gradients(params, round_)
            step()
        found.append(everything(params, optimizer))
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


def test_what_cannot_be_is_refused_at_construction():
    half = [("w", nn.Parameter(torch.zeros(3, dtype=torch.float16)))]
    with pytest.raises(TypeError, match="'w' is float16; use 'master'"):
        SalUnOptimizer(half, half_precision="stochastic")
    optimizer = SalUnOptimizer([nn.Parameter(torch.zeros(3))], half_precision="stochastic")
    with pytest.raises(TypeError, match="'1.0' is float16; use 'master'"):
        optimizer.add_param_group({"params": [half[0][1]]})
    assert len(optimizer.param_groups) == 1
    double = [("w", nn.Parameter(torch.zeros(3, dtype=torch.float64)))]
    with pytest.raises(TypeError, match="'w' is float64"):
        SalUnOptimizer(double, half_precision="master")
    with pytest.raises(ValueError, match="for SGD, Adam and AdamW"):
        SalUnOptimizer(half, torch.optim.RMSprop, half_precision="master")
    with pytest.raises(ValueError, match="seed must fit 64 bits"):
        SalUnOptimizer(double, seed=2**63)
    with pytest.raises(ValueError, match="half_precision must be one of"):
        SalUnOptimizer(half, half_precision="round")
