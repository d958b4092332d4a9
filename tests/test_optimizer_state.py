"""Checkpoints, copies and schedulers of SalUnOptimizer: ACCEPTANCE B7."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import (
    DTYPES,
    EVERY,
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

SOME = [FUSED[1], FUSED[2], FUSED[4], FUSED[6], GENERAL[0], GENERAL[1]]


def _saved(value, **options):
    """Through torch.save and back."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", EVERY, ids=case_id)
def test_b7_resumed_run_is_bit_equal_to_an_uninterrupted_one(case: Case, dtype):
    whole = parameters(dtype)
    masks = kept(whole)
    run(case.salun(named(whole), mask=mask_of(masks)), whole, range(6))
    params = parameters(dtype)
    first = case.salun(named(params), mask=mask_of(masks))
    run(first, params, range(3))
    checkpoint = _saved(first.state_dict(), weights_only=True)
    second = case.salun(named(params))  # its mask comes from the checkpoint
    second.load_state_dict(checkpoint)
    assert second.mask is not None
    assert second.mask.fingerprint == mask_of(masks).fingerprint
    run(second, params, range(3, 6))
    assert all(same_bytes(a, b) for a, b in zip(params, whole, strict=True))


@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_b7_pickled_and_copied_optimizers_go_on_bit_equally(case: Case):
    whole = parameters()
    masks = kept(whole)
    optimizer = case.salun(named(whole), mask=mask_of(masks))
    run(optimizer, whole, range(3))
    copied, copied_params = copy.deepcopy((optimizer, whole))
    pickled, pickled_params = _saved((optimizer, whole), weights_only=False)
    for twin, params in ((copied, copied_params), (pickled, pickled_params), (optimizer, whole)):
        run(twin, params, range(3, 6))
    for a, b, c in zip(whole, copied_params, pickled_params, strict=True):
        assert same_bytes(a, b)
        assert same_bytes(a, c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=case_id)
def test_b7_half_precision_parameters_keep_fp32_state_through_a_checkpoint(dtype):
    params = parameters(dtype)
    optimizer = FUSED[4].salun(named(params), mask=mask_of(kept(params)))
    run(optimizer, params, range(3))
    before = {p: clones(list(s.values())) for p, s in optimizer.state.items()}
    optimizer.load_state_dict(_saved(optimizer.state_dict()))
    for param, values in before.items():
        for now, then in zip(optimizer.state[param].values(), values, strict=True):
            assert now.dtype == torch.float32
            assert same_bytes(now, then)


@pytest.mark.parametrize("case", [c for c in EVERY if "adam" not in c.name], ids=case_id)
def test_b7_checkpoints_move_to_and_from_torch(case: Case):
    """torch -> ours -> torch, without a mask: as if torch had run all along."""
    whole, params = parameters(), parameters()
    run(case.torch(whole), whole, range(9))
    first = case.torch(params)
    run(first, params, range(3))
    ours = case.salun(named(params))
    state = first.state_dict()
    ours.load_state_dict(_saved(state))
    run(ours, params, range(3, 6))
    last = case.torch(params)
    last.load_state_dict(_saved(ours.state_dict()))
    for group in last.param_groups:
        group["foreach"] = False
    run(last, params, range(6, 9))
    assert all(same_bytes(a, b) for a, b in zip(params, whole, strict=True))


@pytest.mark.parametrize("case", [c for c in FUSED if "adam" in c.name], ids=case_id)
def test_b7_adam_state_has_torchs_names_and_loads_there(case: Case):
    params = parameters()
    ours = case.salun(named(params), mask=mask_of(kept(params)))
    run(ours, params, range(3))
    theirs = case.torch(params)
    theirs.load_state_dict(_saved(ours.state_dict()))
    for param in params:
        assert set(theirs.state[param]) >= {"step", "exp_avg", "exp_avg_sq"}
    run(theirs, params, range(3, 4))


def test_checkpoint_without_a_mask_leaves_the_present_one():
    params = parameters()
    masks = kept(params)
    optimizer = FUSED[1].salun(named(params), mask=mask_of(masks))
    optimizer.load_state_dict(FUSED[1].torch(params).state_dict())
    assert optimizer.mask is not None


def test_checkpoint_of_another_mask_is_refused_where_the_mask_itself_was_dropped():
    params = parameters()
    optimizer = FUSED[1].salun(named(params), mask=mask_of(kept(params)))
    state = optimizer.state_dict()
    del state["salun_mask"]
    optimizer.load_state_dict(state)
    for other in (None, mask_of(kept(params, seed=6))):
        optimizer.set_mask(other)
        with pytest.raises(ValueError, match="written under mask"):
            optimizer.load_state_dict(state)


def test_altered_mask_and_state_of_other_shapes_are_refused_with_nothing_changed():
    params = parameters()
    optimizer = FUSED[4].salun(named(params), mask=mask_of(kept(params)))
    run(optimizer, params, range(3))
    before = optimizer.state_dict()
    broken = copy.deepcopy(before)
    broken["salun_mask"]["words"]["w2"][0] ^= 1
    with pytest.raises(ValueError, match="was altered"):
        optimizer.load_state_dict(broken)
    broken = copy.deepcopy(before)
    broken["state"][2]["exp_avg"] = torch.zeros(30)
    with pytest.raises(ValueError, match=r"'exp_avg' of 'w2' has shape \(30,\)"):
        optimizer.load_state_dict(broken)
    after = optimizer.state_dict()
    assert all(before["state"][i]["exp_avg"] is after["state"][i]["exp_avg"] for i in range(3))


def test_state_dict_hooks_see_and_change_everything():
    params = parameters()
    optimizer = FUSED[1].salun(named(params), mask=mask_of(kept(params)))
    seen = []
    optimizer.register_state_dict_post_hook(lambda opt, state: seen.append(sorted(state)))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: seen.append(sorted(state)))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(opt.mask is not None))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [["param_groups", "salun_mask", "state"]] * 2 + [True]


def test_loaded_state_is_not_shared_with_the_checkpoint():
    params = parameters()
    optimizer = FUSED[4].salun(named(params))
    run(optimizer, params, range(3))
    checkpoint = optimizer.state_dict()
    kept_values = clones([checkpoint["state"][i]["exp_avg"] for i in range(4)])
    twin_params = parameters()
    twin = FUSED[4].salun(named(twin_params))
    twin.load_state_dict(checkpoint)
    run(twin, twin_params, range(3, 5))
    assert all(same_bytes(checkpoint["state"][i]["exp_avg"], v) for i, v in enumerate(kept_values))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.StepLR(o, 1)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.StepLR(o, 2)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01),
}


def test_every_scheduler_of_torch_is_in_the_table():
    classes = {n for n in lr_scheduler.__all__ if n not in ("LRScheduler", "_LRScheduler")}
    assert classes <= set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("case", [FUSED[2], FUSED[5]], ids=case_id)
def test_every_scheduler_drives_it_as_it_drives_torch(case: Case, name):
    ours, theirs = parameters(), parameters()
    left, right = case.salun(named(ours)), case.torch(theirs)
    schedulers = [SCHEDULERS[name](left), SCHEDULERS[name](right)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for step in range(6):
            for optimizer, params, scheduler in zip(
                (left, right), (ours, theirs), schedulers, strict=True
            ):
                give_gradients(params, step)
                optimizer.step()
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    hyper = ("lr", "momentum", "betas")
    for a, b in zip(left.param_groups, right.param_groups, strict=True):
        assert {k: a.get(k) for k in hyper} == {k: b.get(k) for k in hyper}
    if case.optimizer_class is torch.optim.SGD:
        assert all(same_bytes(a, b) for a, b in zip(ours, theirs, strict=True))


def test_new_selection_keeps_the_state_of_what_it_freezes():
    weight = nn.Parameter(torch.zeros(64))
    chosen = torch.arange(64) < 32
    optimizer = SalUnOptimizer(
        [("w", weight)], lr=0.1, momentum=0.9, mask=SaliencyMask.from_dict({"w": chosen})
    )
    weight.grad = torch.ones(64)
    optimizer.step()
    optimizer.set_mask(SaliencyMask.from_dict({"w": ~chosen}))
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.ones(64))
    assert torch.equal(weight, torch.full((64,), -0.1))


def test_group_added_without_an_entry_stays_dense_through_a_checkpoint():
    def build(mask):
        torch.manual_seed(0)
        a, b = nn.Parameter(torch.randn(40)), nn.Parameter(torch.randn(40))
        optimizer = SalUnOptimizer([("a", a)], torch.optim.AdamW, mask=mask)
        optimizer.add_param_group({"params": [("b", b)]})
        return a, b, optimizer

    _, _, first = build(SaliencyMask.from_dict({"a": torch.arange(40) < 5}))
    a, b, second = build(None)
    second.load_state_dict(_saved(first.state_dict()))
    before = a.detach().clone(), b.detach().clone()
    a.grad, b.grad = torch.ones(40), torch.ones(40)
    second.step()
    assert torch.equal(a != before[0], torch.arange(40) < 5)
    assert bool((b != before[1]).all())


def test_distributed_checkpoint_reads_state_without_moving_a_weight():
    """It creates state by a step with zero gradients and lr 0, here even while measuring."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    mask = SaliencyMask.from_dict({n: torch.rand(p.shape) < 0.5 for n, p in
                                   model.named_parameters()})  # fmt: skip
    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.AdamW, lr=0.1, mask=mask)
    before = clones([param.detach() for param in model.parameters()])
    with optimizer.measure_saliency():
        state = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, state)
    assert all(same_bytes(a.detach(), b) for a, b in zip(model.parameters(), before, strict=True))
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    for param, old, name in zip(model.parameters(), before, mask.names, strict=True):
        assert torch.equal(param.detach() != old, mask[name])
