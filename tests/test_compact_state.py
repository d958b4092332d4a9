"""state="compact": the bits of dense state, in the memory of the selected weights."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import same_bytes
from tests.optimizer_cases import (
    DTYPES,
    FUSED,
    Case,
    case_id,
    give_gradients,
    kept,
    mask_of,
    named,
    parameters,
    run,
)

KEEPING = [case for case in FUSED if case.name != "sgd-plain"]
SOME = [FUSED[2], FUSED[6]]


def pair(case: Case, dtype=torch.float32, masks=None, **options):
    """Two optimizers on equal parameters, one of dense and one of compact state."""
    made = []
    for state in ("dense", "compact"):
        params = parameters(dtype)
        mask = mask_of(masks or kept(params))
        made.append((case.salun(named(params), mask=mask, state=state, **options), params))
    return made


def dense_state(optimizer: SalUnOptimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[i][key] for i in sorted(state) for key in sorted(state[i])]


def assert_same(dense, compact) -> None:
    (left, ours), (right, theirs) = dense, compact
    assert all(same_bytes(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True))
    one, other = dense_state(left), dense_state(right)
    assert len(one) == len(other)
    assert all(same_bytes(a, b) for a, b in zip(one, other, strict=True))


def saved(value):
    """Through torch.save and back."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=not isinstance(value, tuple))


# --- the same bits in less memory -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_twenty_steps_have_the_bits_of_dense_state(case: Case, dtype):
    dense, compact = pair(case, dtype)
    masks = kept(dense[1])
    for optimizer, params in (dense, compact):
        run(optimizer, params, range(20), poison=masks)
    assert_same(dense, compact)


@pytest.mark.parametrize("mode", ["stochastic", "master"])
@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_half_precision_modes_have_the_bits_of_dense_state(case: Case, mode):
    dense, compact = pair(case, torch.bfloat16, half_precision=mode, seed=3)
    for optimizer, params in (dense, compact):
        run(optimizer, params, range(6))
    assert_same(dense, compact)
    if mode == "master":
        param = compact[1][0]
        assert compact[0].state[param]["master_param"].shape == param.shape


@pytest.mark.parametrize("case", KEEPING, ids=case_id)
def test_moments_are_those_of_selected_weights_alone(case: Case):
    _, (optimizer, params) = pair(case)
    run(optimizer, params, range(3))
    for param, mask in zip(params, kept(params), strict=True):
        for key, value in optimizer.state[param].items():
            expected = () if key == "step" else (int(mask.sum()),)
            if param.numel():
                assert value.shape == expected, key


def test_a_scaled_step_and_a_skipped_one():
    dense, compact = pair(FUSED[5])
    for optimizer, params in (dense, compact):
        run(optimizer, params, range(3))
        for found_inf in (0.0, 1.0):
            optimizer.grad_scale = torch.tensor(1024.0)
            optimizer.found_inf = torch.tensor(found_inf)
            run(optimizer, params, range(3, 4))
            del optimizer.grad_scale, optimizer.found_inf
    assert_same(dense, compact)


def test_parameters_without_an_entry_and_optimizers_without_a_mask_keep_dense_state():
    a, b = nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(5, 4))
    adam = partial(SalUnOptimizer, [("a", a), ("b", b)], torch.optim.Adam, state="compact")
    optimizer = adam()
    a.grad, b.grad = torch.ones(40), torch.ones(5, 4)
    optimizer.step()
    assert optimizer.state[a]["exp_avg"].shape == (40,)
    optimizer = adam()
    mask = SaliencyMask.from_dict({"a": torch.arange(40) < 3})
    optimizer.set_mask(mask, strict=False)
    optimizer.step()
    assert optimizer.state[a]["exp_avg"].shape == (3,)
    assert optimizer.state[b]["exp_avg"].shape == (5, 4)


def test_shared_frozen_and_late_parameters():
    found = []
    for state in ("dense", "compact"):
        shared, still, late = (nn.Parameter(torch.ones(9)) for _ in range(3))
        groups = [("s", shared), ("still", still), ("late", late)]
        mask = SaliencyMask.from_dict({name: torch.arange(9) % 2 == 0 for name, _ in groups})
        optimizer = SalUnOptimizer(groups, torch.optim.AdamW, state=state, mask=mask)
        still.requires_grad_(False)
        for step in range(4):
            optimizer.zero_grad()
            loss = (shared.sin() * shared.cos()).sum() + (late.sum() if step > 1 else 0)
            loss.backward()
            optimizer.step()
        assert set(optimizer.state) == {shared, late}
        found.append([p.detach() for p in (shared, still, late)])
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", KEEPING, ids=case_id)
def test_checkpoints_are_dense_and_go_everywhere(case: Case):
    """torch -> compact -> dense -> compact -> torch, as if torch had loaded what dense saved."""
    ends = []
    for states in (("compact", "dense", "compact"), ("dense", "dense", "dense")):
        params = parameters()
        mask = mask_of(kept(params))
        optimizer = case.torch(params)
        run(optimizer, params, range(3))
        for index, state in enumerate(states):
            loaded = saved(optimizer.state_dict())
            optimizer = case.salun(named(params), mask=mask, state=state)
            optimizer.load_state_dict(loaded)
            run(optimizer, params, range(3 * index + 3, 3 * index + 6))
        checkpoint = saved(optimizer.state_dict())
        last = case.torch(params)
        last.load_state_dict(checkpoint)
        run(last, params, range(12, 13))
        for index, param in enumerate(params):
            for key, value in checkpoint["state"][index].items():
                assert key == "step" or value.shape == param.shape
        ends.append(params)
    selected = kept(ends[0])
    for ours, theirs, mask in zip(*ends, selected, strict=True):
        assert same_bytes(ours.detach()[mask], theirs.detach()[mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=case_id)
@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(case: Case, dtype):
    whole, params = parameters(dtype), parameters(dtype)
    mask = mask_of(kept(whole))
    run(case.salun(named(whole), mask=mask, state="compact"), whole, range(6))
    first = case.salun(named(params), mask=mask, state="compact")
    run(first, params, range(3))
    second = case.salun(named(params), state="compact")  # its mask comes from the checkpoint
    second.load_state_dict(saved(first.state_dict()))
    run(second, params, range(3, 6))
    assert all(same_bytes(a, b) for a, b in zip(params, whole, strict=True))


def test_copies_and_pickles_stay_compact_and_go_on():
    _, (optimizer, params) = pair(SOME[1])
    run(optimizer, params, range(3))
    for tensor in params:  # no step has seen this yet
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    twins = [copy.deepcopy((optimizer, params)), saved((optimizer, params)), (optimizer, params)]
    for twin, own in twins:
        assert twin.state[own[2]]["exp_avg"].dim() == 1
        run(twin, own, range(3, 6))
    for one, two, three in zip(*(own for _, own in twins), strict=True):
        assert same_bytes(one, two)
        assert same_bytes(one, three)


def test_distributed_checkpoint_sees_dense_state_and_fills_compact_state():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    mask = SaliencyMask.from_dict({n: torch.rand(p.shape) < 0.5 for n, p in
                                   model.named_parameters()})  # fmt: skip
    make = partial(
        SalUnOptimizer, list(model.named_parameters()), torch.optim.AdamW, mask=mask,
        state="compact",
    )  # fmt: skip
    first, second = make(), make()
    model(torch.randn(2, 4)).sum().backward()
    first.step()
    state = get_optimizer_state_dict(model, first)
    assert state["state"]["weight"]["exp_avg"].shape == (3, 4)
    set_optimizer_state_dict(model, second, state)
    for param in model.parameters():
        mine, theirs = first.state[param]["exp_avg"], second.state[param]["exp_avg"]
        assert theirs.dim() == 1
        assert same_bytes(mine, theirs)


def test_what_state_dict_returns_is_no_part_of_the_optimizer():
    _, (optimizer, params) = pair(SOME[1])
    run(optimizer, params, range(3))
    optimizer.state_dict()
    assert optimizer.state[params[6]]["exp_avg"].dim() == 1
    run(optimizer, params, range(3, 4))


# --- another mask, another layout -----------------------------------------------------------------


def expected_after(state: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    return torch.where(now, state, 0.0)


@pytest.mark.parametrize("case", SOME, ids=case_id)
def test_another_mask_keeps_common_moments_and_the_rest_begins_at_zero(case: Case):
    dense, compact = pair(case)
    for optimizer, params in (dense, compact):
        run(optimizer, params, range(3))
    masks = kept(dense[1], seed=6)
    masks[3], masks[6] = ~masks[3], ~masks[6]  # one was all zeros, one all ones
    for optimizer, _ in (dense, compact):
        optimizer.set_mask(mask_of(masks))
    for param, mask in zip(dense[1], masks, strict=True):  # what dense state keeps beside
        entry = dense[0].state[param]
        entry.update({k: expected_after(v, mask) for k, v in entry.items() if k != "step"})
    assert_same(dense, compact)
    for optimizer, params in (dense, compact):
        run(optimizer, params, range(3, 6))
    assert_same(dense, compact)
    for optimizer, params in (dense, compact):
        optimizer.set_mask(None)
        run(optimizer, params, range(6, 8))
    assert_same(dense, compact)
    assert compact[0].state[compact[1][6]]["step"].numel() == 1
    shapes = [v.shape for k, v in compact[0].state[compact[1][6]].items() if k != "step"]
    assert set(shapes) == {compact[1][6].shape}


def _move(module: nn.Module, how: str) -> None:
    if how == "channels_last":
        module.to(memory_format=torch.channels_last)
    else:
        module.weight.data = module.weight.data.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


AFTERWARDS = {
    "step": lambda o, m: o,
    "checkpoint": lambda o, m: o.load_state_dict(saved(o.state_dict())),
    "clip": lambda o, m: o.clip_grad_norm_(1e9),
    "mask": lambda o, m: o.set_mask(o.mask),
    "dense-and-back": lambda o, m: [o.set_mask(other) for other in (None, o.mask)],
}


@pytest.mark.parametrize("how", ["channels_last", "permuted"])
@pytest.mark.parametrize("then", AFTERWARDS)
def test_moments_follow_a_parameter_that_changes_its_strides(then, how):
    """Whatever is asked for first after the move."""
    found = []
    for moves in (False, True):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3)
        mask = SaliencyMask.from_dict({n: torch.rand(p.shape) < 0.4 for n, p in
                                       conv.named_parameters()})  # fmt: skip
        optimizer = SalUnOptimizer(
            conv.named_parameters(), torch.optim.AdamW, lr=0.1, mask=mask, state="compact"
        )
        for step in range(5):
            if step == 3:
                if moves:
                    _move(conv, how)
                AFTERWARDS[then](optimizer, mask)
            torch.manual_seed(step)
            for param in conv.parameters():
                param.grad = torch.randn(param.shape)
            optimizer.step()
        found.append(conv.weight.detach().contiguous())
    assert same_bytes(*found)


def test_steps_in_backward_have_the_bits_of_dense_state():
    found = []
    for state in ("dense", "compact"):
        torch.manual_seed(0)
        model = nn.Linear(6, 5)
        mask = SaliencyMask.from_dict({n: torch.rand(p.shape) < 0.5 for n, p in
                                       model.named_parameters()})  # fmt: skip
        optimizer = SalUnOptimizer(
            model.named_parameters(), torch.optim.Adam, state=state, mask=mask
        )
        with optimizer.step_in_backward():
            for _ in range(3):
                model(torch.randn(2, 6)).square().sum().backward()
        found.append([param.detach() for param in model.parameters()])
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


def test_selecting_again_re_lays_the_state():
    _, (optimizer, params) = pair(SOME[1])
    run(optimizer, params, range(3))
    with optimizer.measure_saliency():
        sum((param.float() * (i + 1)).square().sum() for i, param in enumerate(params)).backward()
    mask = optimizer.select(0.25)
    run(optimizer, params, range(3, 5))
    moments = sum(optimizer.state[param]["exp_avg"].numel() for param in params)
    assert moments == mask.count


# --- compiled steps, plans ------------------------------------------------------------------------


def test_a_compiled_step_compiles_once_and_has_the_same_bits():
    case, found = FUSED[6], []
    for state in ("dense", "compact"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
        mask = SaliencyMask.from_dict({n: torch.rand(p.shape) < 0.5 for n, p in
                                       model.named_parameters()})  # fmt: skip
        options = {**case.options, "lr": torch.tensor(0.02)}
        optimizer = SalUnOptimizer(
            model.named_parameters(), case.optimizer_class, mask=mask, state=state, **options
        )
        count = CompileCounterWithBackend("aot_eager")
        step = torch.compile(optimizer.step, fullgraph=True, backend=count)
        for round_ in range(4):
            torch.manual_seed(round_)
            for param in model.parameters():
                param.grad = torch.randn_like(param)
            step()
            if round_ == 2:
                optimizer.load_state_dict(optimizer.state_dict())
        assert count.frame_count == 1
        found.append([param.detach() for param in model.parameters()])
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


def test_state_of_another_size_is_refused_by_name_with_nothing_changed():
    _, (optimizer, params) = pair(SOME[1])
    run(optimizer, params, range(4))
    before = [param.detach().clone() for param in params]
    entry = optimizer.state[params[6]]
    entry["exp_avg"] = entry["exp_avg"][:-1].clone()
    give_gradients(params, 4)
    with pytest.raises(ValueError, match="'exp_avg' of 'w6' has shape"):
        optimizer.step()
    assert all(same_bytes(a.detach(), b) for a, b in zip(params, before, strict=True))


# --- what cannot be had ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": "gradient"}, "freeze='gradient' moves by them: use state='dense'"),
        ({"optimizer_class": torch.optim.RMSprop}, "for SGD, Adam and AdamW"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SalUnOptimizer([nn.Parameter(torch.zeros(3))], **{"state": "compact", **options})


def test_dense_steps_and_fp64_are_refused():
    weight = nn.Parameter(torch.zeros(8))
    optimizer = SalUnOptimizer([("w", weight)], torch.optim.Adam, state="compact")
    with pytest.raises(ValueError, match="unmasked"), optimizer.unmasked():
        pass
    with pytest.raises(TypeError, match="'v' is float64; use state='dense'"):
        optimizer.add_param_group({"params": [("v", nn.Parameter(torch.zeros(3).double()))]})
    weight.grad = torch.ones(8)
    optimizer.step()
    weight.data, weight.grad = weight.data.double(), torch.ones(8).double()
    with pytest.raises(TypeError, match="'w' is float64; use state='dense'"):
        optimizer.step()
