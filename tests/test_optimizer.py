"""SalUnOptimizer against torch's for-loop steps: ACCEPTANCE B1 to B9."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import MaskNotApplied, SalUnOptimizer
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import (
    DTYPES,
    EVERY,
    FUSED,
    GENERAL,
    Case,
    case_id,
    frozen_kept,
    give_gradients,
    kept,
    mask_of,
    named,
    parameters,
    run,
)

SGD_CLASSIFIER = {"lr": 0.013, "momentum": 0.9, "weight_decay": 5e-4}


# --- B1: frozen weights keep every bit ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", EVERY, ids=case_id)
def test_b1_frozen_weights_keep_every_bit_under_poisoned_gradients(case: Case, dtype):
    params = parameters(dtype)
    masks = kept(params)
    with torch.no_grad():
        params[12][0], masks[12][0] = float("nan"), False  # a NaN's payload counts too
    before = clones([param.detach() for param in params])
    optimizer = case.salun(named(params), mask=mask_of(masks))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.8)
    for step in range(12 if case in GENERAL else 100):
        give_gradients(params, step, poison=masks)
        optimizer.step(lambda: 0.0)
        scheduler.step()
    for now, then in frozen_kept(params, before, masks):
        assert same_bytes(now, then)
    if dtype != torch.float16 or case in FUSED:  # torch's eps of 1e-8 is 0 in fp16
        for param, mask in zip(params, masks, strict=True):
            assert param.detach()[mask].isfinite().all()


def test_b1_skipped_gradscaler_step_advances_nothing():
    params = parameters()
    masks = kept(params)
    for case in FUSED:
        optimizer = case.salun(named(params), mask=mask_of(masks))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = clones([param.detach() for param in params])
        scaler.scale(torch.tensor(1.0))
        give_gradients(params, 5, poison=masks)  # GradScaler looks at frozen gradients too
        scaler.step(optimizer)
        scaler.update()
        assert all(same_bytes(p.detach(), b) for p, b in zip(params, before, strict=True))
        for state in optimizer.state.values():
            assert all(not bool(value.any()) for value in state.values()), case.name


@pytest.mark.parametrize("case", FUSED + GENERAL[:1], ids=case_id)
def test_gradscaler_step_equals_unscaled_step(case: Case):
    scaled, plain = parameters(), parameters()
    masks = kept(scaled)
    left, right = (case.salun(named(ps), mask=mask_of(masks)) for ps in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    scaler.scale(torch.tensor(1.0))
    for step in range(4):
        give_gradients(scaled, step)
        for param in scaled:
            if param.grad is not None:
                param.grad *= 1024.0
        scaler.step(left)
        scaler.update()
        give_gradients(plain, step)
        right.step()
    assert all(same_bytes(a, b) for a, b in zip(scaled, plain, strict=True))


# --- B1b: the mask acts ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", EVERY, ids=case_id)
def test_b1b_one_step_moves_selected_weights_and_only_them(case: Case):
    params = parameters()
    masks = kept(params)
    before = clones([param.detach() for param in params])
    case.salun(named(params), mask=mask_of(masks)).step()  # no gradients at all: nothing to do
    run(case.salun(named(params), mask=mask_of(masks)), params, range(2, 3))
    changed = [p.detach() != b for p, b in zip(params, before, strict=True)]
    assert sum(int(c.sum()) for c in changed) > 0
    assert not any(bool((c & ~mask).any()) for c, mask in zip(changed, masks, strict=True))


def _step_that_ignores_the_mask(group, items, *rest):
    for item in items:
        item.param.sub_(0.1 * item.grad)


def test_b1b_step_that_ignores_the_mask_fails_loudly(monkeypatch):
    monkeypatch.setattr("salun_fast.optimizer.fused_step", _step_that_ignores_the_mask)
    params = parameters()
    optimizer = SalUnOptimizer(named(params), lr=0.1, mask=mask_of(kept(params)))
    give_gradients(params, 2)
    with pytest.raises(MaskNotApplied, match="changed frozen weights of 'w"):
        optimizer.step()


def test_b1b_step_that_moves_nothing_fails_loudly(monkeypatch):
    monkeypatch.setattr("salun_fast.optimizer.fused_step", lambda *args: None)
    params = parameters()
    optimizer = SalUnOptimizer(named(params), lr=0.1, mask=mask_of(kept(params)))
    give_gradients(params, 2)
    with pytest.raises(MaskNotApplied, match="no selected weight"):
        optimizer.step()


@pytest.mark.parametrize("lr", [0.0, 1e-30])
def test_b1b_check_is_silent_where_nothing_can_move(lr):
    params = parameters()
    optimizer = SalUnOptimizer(named(params), lr=lr, mask=mask_of(kept(params)))
    run(optimizer, params, range(3))
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()


# --- B2, B3: decomposition and equality with torch ------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", EVERY, ids=case_id)
def test_b2_masked_step_is_where_mask_dense_original(case: Case, dtype):
    if case.name == "rmsprop" and dtype == torch.float16:
        pytest.skip("torch's own step divides 0 by an eps that is 0 in fp16")
    masked, dense = parameters(dtype), parameters(dtype)
    masks = kept(masked)
    before = clones([param.detach() for param in masked])
    left, right = case.salun(named(masked), mask=mask_of(masks)), case.salun(named(dense))
    run(left, masked, range(10), poison=masks)
    run(right, dense, range(10))
    for param, twin, old, mask in zip(masked, dense, before, masks, strict=True):
        assert same_bytes(param, torch.where(mask, twin.detach(), old))
        for key, value in right.state[twin].items():
            if value.shape == param.shape and param.dim():
                frozen = left.state[param][key][~mask]
                assert same_bytes(left.state[param][key][mask], value[mask])
                expected = torch.tensor(_initial(case, key)).to(frozen.dtype)
                slack = 1e-7 if case.name == "adamax" else 0.0  # its eps enters max(0, |g| + eps)
                assert ((frozen - expected).abs() <= slack).all()


def _initial(case: Case, key: str) -> float:
    if (case.name, key) == ("rprop", "step_size"):
        return 0.02
    if (case.name, key) == ("adagrad", "sum"):
        return 0.1
    return 0.0


@pytest.mark.parametrize("full", [False, True], ids=["no-mask", "all-ones"])
@pytest.mark.parametrize("case", [c for c in EVERY if "adam" not in c.name], ids=case_id)
def test_b3_without_freezing_it_is_the_for_loop_step_bit_for_bit(case: Case, full):
    ours, theirs = parameters(), parameters()
    mask = mask_of([torch.ones(p.shape, dtype=torch.bool) for p in ours]) if full else None
    run(case.salun(named(ours), mask=mask), ours, range(20))
    run(case.torch(theirs), theirs, range(20))
    assert all(same_bytes(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", [c for c in FUSED if "adam" in c.name], ids=case_id)
def test_b3_adam_stays_within_two_ulp_a_step_of_the_for_loop(case: Case):
    ours, theirs = parameters(), parameters()
    left, right = case.salun(named(ours)), case.torch(theirs)
    for step in range(8):
        old = clones([param.detach() for param in theirs])
        run(left, ours, range(step, step + 1))
        run(right, theirs, range(step, step + 1))
        for a, b, o in zip(ours, theirs, old, strict=True):
            ulp = (b.detach().abs() + o.abs()) * 2.0**-23
            assert ((a - b).abs() <= 2 * ulp + 1e-38).all()
        left.load_state_dict(right.state_dict())
        for a, b in zip(ours, theirs, strict=True):
            a.data.copy_(b.data)


def test_parameters_of_fp64_run_through_the_general_path():
    weight = nn.Parameter(torch.randn(40, dtype=torch.float64))
    mask = SaliencyMask.from_dict({"w": torch.arange(40) < 20})
    before = weight.detach().clone()
    optimizer = SalUnOptimizer([("w", weight)], mask=mask, **SGD_CLASSIFIER)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach() != before, torch.arange(40) < 20)


@pytest.mark.parametrize("case", [FUSED[1], FUSED[6]], ids=case_id)
def test_gradients_of_other_strides_pair_with_the_right_weights(case: Case):
    results = []
    for grad in (torch.arange(24.0).view(4, 6).t(), torch.arange(24.0).view(4, 6).t().contiguous()):
        weight = nn.Parameter(torch.ones(6, 4))
        optimizer = case.salun(
            [("w", weight)], mask=SaliencyMask.from_dict({"w": torch.eye(6, 4).bool()})
        )
        weight.grad = grad
        optimizer.step()
        weight.grad = torch.ones(()).expand(6, 4)
        optimizer.step()
        results.append(weight.detach().clone())
    assert same_bytes(*results)


@pytest.mark.parametrize("case", [FUSED[2], FUSED[4], GENERAL[0]], ids=case_id)
def test_mask_follows_a_parameter_into_channels_last(case: Case):
    results = []
    for moves in (False, True):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3)
        mask = SaliencyMask.from_dict(
            {"weight": torch.rand(8, 3, 3, 3) < 0.5, "bias": torch.rand(8) < 0.5}
        )
        optimizer = case.salun(conv.named_parameters(), mask=mask)
        for step in range(3):
            if moves and step == 1:
                conv.to(memory_format=torch.channels_last)
            torch.manual_seed(step)
            for param in conv.parameters():
                param.grad = torch.randn(param.shape)
            optimizer.step()
        results.append(conv.weight.detach().contiguous())
    assert same_bytes(*results)


# --- B4: gradient-only freezing -------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "expected"), [(0.013, 0.89178), (0.1, 0.41284)])
def test_b4_gradient_freezing_drifts_as_the_old_reference(lr, expected):
    weight = nn.Parameter(torch.ones(64))
    mask = SaliencyMask.from_dict({"w": torch.arange(64) < 1})
    optimizer = SalUnOptimizer(
        [("w", weight)], mask=mask, freeze="gradient", lr=lr, momentum=0.9, weight_decay=5e-4
    )
    for _ in range(1770):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight.detach()[1:].tolist() == pytest.approx([expected] * 63, abs=5e-6)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.RMSprop])
def test_b4_gradient_freezing_without_decay_leaves_weights_and_gradients(optimizer_class):
    weight = nn.Parameter(torch.ones(64))
    chosen = torch.arange(64) < 32
    optimizer = SalUnOptimizer(
        [("w", weight)], optimizer_class, freeze="gradient",
        mask=SaliencyMask.from_dict({"w": chosen}),
    )  # fmt: skip
    for _ in range(5):
        weight.grad = torch.where(chosen, 1.0, float("nan"))
        optimizer.step()
    assert torch.equal(weight.detach() != 1.0, chosen)
    assert weight.grad.isnan().sum() == 32


# --- B5, B6, B8, B9 -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_b5_clipping_takes_the_norm_of_all_or_of_selected_gradients(masked):
    weight, bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))
    mask = SaliencyMask.from_dict(
        {"w": torch.tensor([True, True, False, False]), "b": torch.tensor([False, False])}
    )
    optimizer = SalUnOptimizer([("w", weight), ("b", bias)], lr=1.0, mask=mask)
    weight.grad, bias.grad = torch.tensor([3.0, 4.0, 12.0, 0.0]), torch.tensor([84.0, 0.0])
    norm = optimizer.clip_grad_norm_(2.0, masked=masked)
    expected = 5.0 if masked else 85.0
    assert float(norm) == pytest.approx(expected)
    assert bias.grad[0].item() == pytest.approx(84.0 * 2.0 / (expected + 1e-6))
    optimizer.step()
    assert weight.tolist() == pytest.approx([-3 * 2 / expected, -4 * 2 / expected, 0.0, 0.0])


def test_b5_masked_norm_ignores_nan_outside_the_mask_and_all_norms_agree_without_a_mask():
    params = parameters()
    masks = kept(params)
    optimizer = SalUnOptimizer(named(params), lr=0.1, mask=mask_of(masks))
    give_gradients(params, 2, poison=masks)
    assert optimizer.clip_grad_norm_(1.0, masked=True).isfinite()
    give_gradients(params, 2)
    optimizer.set_mask(None)
    assert optimizer.clip_grad_norm_(1e9, masked=True) == optimizer.clip_grad_norm_(1e9)


@pytest.mark.parametrize("case", [FUSED[1], FUSED[6], GENERAL[0]], ids=case_id)
def test_b6_unmasked_step_is_dense_and_frozen_then_means_its_value(case: Case):
    toggled, dense = parameters(), parameters()
    masks = kept(toggled)
    optimizer = case.salun(named(toggled), mask=mask_of(masks))
    twin = case.salun(named(dense))
    with optimizer.unmasked():
        run(optimizer, toggled, range(2))
    run(twin, dense, range(2))
    assert all(same_bytes(a, b) for a, b in zip(toggled, dense, strict=True))
    then = clones([param.detach() for param in toggled])
    run(optimizer, toggled, range(2, 5), poison=masks)
    assert all(same_bytes(a, b) for a, b in frozen_kept(toggled, then, masks))
    assert any(not same_bytes(a, b) for a, b in zip(toggled, then, strict=True))


@pytest.mark.parametrize("freeze", ["exact", "gradient"])
@pytest.mark.parametrize("case", [FUSED[1], FUSED[6], GENERAL[0]], ids=case_id)
def test_b8_step_never_writes_gradients(case: Case, freeze):
    params = parameters()
    optimizer = case.salun(named(params), mask=mask_of(kept(params)), freeze=freeze)
    give_gradients(params, 3)
    grads = [param.grad for param in params]
    before = clones(grads)
    optimizer.step()
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    assert all(same_bytes(a, b) for a, b in zip(grads, before, strict=True))


def test_b9_running_statistics_move_although_every_norm_weight_is_frozen():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    masks = {n: torch.full(p.shape, n.startswith("0")) for n, p in model.named_parameters()}
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1, mask=SaliencyMask.from_dict(masks))
    statistics = model[1].running_mean.clone()
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, torch.ones(6))
    assert not torch.equal(model[1].running_mean, statistics)


# --- the loop a user has --------------------------------------------------------------------------


def _model_and_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.randn(32, 8), torch.randint(3, (32,))


def test_measure_select_train_as_the_readme_shows():
    model, x, y = _model_and_data()
    optimizer = SalUnOptimizer(model.named_parameters(), **SGD_CLASSIFIER)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    with optimizer.measure_saliency():
        for part in (slice(0, 16), slice(16, 32)):
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
    mask = optimizer.select(density=0.5)
    assert mask is optimizer.mask
    assert all(torch.equal(before[n], p.detach()) for n, p in model.named_parameters())
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, param in model.named_parameters():
        assert same_bytes(param.detach()[~mask[name]], before[name][~mask[name]])


def test_step_inside_measure_saliency_is_an_error_unless_nothing_can_move():
    model, x, y = _model_and_data()
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    with optimizer.measure_saliency():
        nn.functional.cross_entropy(model(x), y).backward()
        with pytest.raises(RuntimeError, match="inside measure_saliency"):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()


def test_select_without_scores_says_what_to_do():
    model, _, _ = _model_and_data()
    with pytest.raises(RuntimeError, match="measure_saliency"):
        SalUnOptimizer(model.named_parameters(), lr=0.1).select(0.5)


def test_backward_through_an_overwritten_weight_is_noticed():
    model, x, y = _model_and_data()
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_groups_have_their_own_rates_and_an_added_group_is_dense():
    a, b, c = (nn.Parameter(torch.zeros(40)) for _ in range(3))
    chosen = torch.arange(40) % 2 == 0
    mask = SaliencyMask.from_dict({"a": chosen, "b": ~chosen})
    optimizer = SalUnOptimizer(
        [{"params": [("a", a)], "lr": 0.5}, {"params": [("b", b)]}], lr=0.25, mask=mask
    )
    optimizer.add_param_group({"params": [("c", c)], "lr": 2.0})
    for param in (a, b, c):
        param.grad = -torch.ones(40)
    optimizer.step()
    assert torch.equal(a, torch.where(chosen, 0.5, 0.0))
    assert torch.equal(b, torch.where(chosen, 0.0, 0.25))
    assert torch.equal(c, torch.full((40,), 2.0))


def test_added_group_works_for_classes_with_their_own_state():
    a, b = (nn.Parameter(torch.zeros(40)) for _ in range(2))
    optimizer = SalUnOptimizer([("a", a)], torch.optim.RMSprop)
    optimizer.add_param_group({"params": [("b", b)]})
    a.grad, b.grad = torch.ones(40), torch.ones(40)
    optimizer.step()
    assert b.detach().ne(0).all()
    assert set(optimizer.state) == {a, b}


def test_unnamed_parameters_are_called_by_group_and_index():
    a, b = (nn.Parameter(torch.zeros(8)) for _ in range(2))
    chosen = torch.arange(8) < 2
    mask = SaliencyMask.from_dict({"0.0": chosen, "1.0": ~chosen})
    optimizer = SalUnOptimizer([{"params": [a]}, {"params": [b]}], lr=1.0, mask=mask)
    a.grad, b.grad = -torch.ones(8), -torch.ones(8)
    optimizer.step()
    assert torch.equal(a, chosen.float())
    assert torch.equal(b, (~chosen).float())


def test_shared_frozen_and_gradientless_parameters():
    shared = nn.Parameter(torch.zeros(8))
    still = nn.Parameter(torch.zeros(8), requires_grad=False)
    idle = nn.Parameter(torch.zeros(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the duplicate
        optimizer = SalUnOptimizer(
            [("tied", shared), ("still", still), ("idle", idle), ("again", shared)],
            lr=1.0, momentum=0.9,
        )  # fmt: skip
    shared.grad = torch.ones(8)
    optimizer.step()
    assert torch.equal(shared, -torch.ones(8))
    assert set(optimizer.state) == {shared}


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    weight = nn.Parameter(torch.ones(8))
    optimizer = SalUnOptimizer([weight], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 8.0
    assert torch.equal(weight, torch.zeros(8))


def test_step_hooks_run_once_local_and_global():
    calls = []
    weight = nn.Parameter(torch.ones(8))
    from torch.optim.optimizer import register_optimizer_step_post_hook

    optimizer = SalUnOptimizer([weight], torch.optim.RMSprop)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append("pre"))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("post"))
    handle = register_optimizer_step_post_hook(lambda opt, a, k: calls.append(type(opt).__name__))
    try:
        weight.grad = torch.ones(8)
        optimizer.step()
    finally:
        handle.remove()
    assert calls == ["pre", "post", "SalUnOptimizer"]


def test_tensor_learning_rate_is_read_at_each_step():
    weight, rate = nn.Parameter(torch.zeros(8)), torch.tensor(1.0)
    optimizer = SalUnOptimizer([weight], lr=rate)
    weight.grad = -torch.ones(8)
    optimizer.step()
    rate.fill_(0.5)
    optimizer.step()
    assert torch.equal(weight, torch.full((8,), 1.5))
