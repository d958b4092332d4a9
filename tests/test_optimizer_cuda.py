"""SalUnOptimizer on GPUs: what a step hands to the ops and never waits for, seen without a GPU on
fake CUDA tensors; and, where there is a GPU, bits, graphs, streams and several devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salun_fast import _capture, bits
from salun_fast._score_sums import ScoreSums
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import NonfiniteGradientError, SalUnOptimizer
from salun_fast.saliency import Saliency
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

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


# --- fake CUDA tensors: which ops run, on what ----------------------------------------------------


class Recorder(TorchDispatchMode):
    """Names of the ops that ran inside, each with the devices of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, set[torch.device]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in ("profiler", "prim"):
            found = [t.device for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.calls.append((f"{func.namespace}.{func._opname}", set(found)))
        return result


@contextmanager
def recorded() -> Iterator[list[tuple[str, set[torch.device]]]]:
    with Recorder() as recorder:
        yield recorder.calls


@pytest.fixture
def fake():
    """Fake tensors have a device and no values: fetching one (item, bool, tolist) raises."""
    if torch.version.cuda is None:
        pytest.skip("a CPU build of torch has no fake CUDA tensors")
    with FakeTensorMode() as mode:
        yield mode


def fake_parameters(dtype: torch.dtype = torch.float32, *devices: torch.device) -> list[Parameter]:
    shapes = [(3, 40), (2, 3, 4, 5), (7,), ()]
    placed = devices or (FIRST,)
    tensors = [
        torch.empty(shape, dtype=dtype, device=placed[i % len(placed)])
        for i, shape in enumerate(shapes)
    ]
    tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
    return [Parameter(tensor) for tensor in tensors]


def masked(params: list[Parameter], case: Case, **options: Any) -> SalUnOptimizer:
    """Under a mask whose words lie on the CPU, its check that needs values taken as passed."""
    optimizer = case.salun(named(params), **options)
    shapes = {name: param.shape for name, param in named(params)}
    words = {
        n: torch.zeros(bits.word_count(s.numel()), dtype=torch.int32) for n, s in shapes.items()
    }
    optimizer._put_in_force(SaliencyMask(words, shapes))
    optimizer._checks_left = 0
    return optimizer


def stepped(optimizer: SalUnOptimizer) -> list[tuple[str, set[torch.device]]]:
    """What the second of two steps calls."""
    for _ in range(2):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.empty_like(param)
        with recorded() as calls:
            optimizer.step()
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_a_step_is_one_op_on_the_gpu_and_waits_for_nothing(fake, case, dtype):
    optimizer = masked(fake_parameters(dtype), case)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=FIRST)
    optimizer.grad_scale = torch.tensor(1024.0, device=FIRST)
    optimizer.found_inf = torch.tensor(0.0, device=FIRST)
    op = "salun_fast.masked_sgd_" if case.optimizer_class is torch.optim.SGD else None
    assert stepped(optimizer) == [(op or "salun_fast.masked_adam_", {FIRST})]


def test_a_number_as_learning_rate_stays_on_the_cpu_and_costs_no_copy(fake):
    calls = stepped(masked(fake_parameters(), FUSED[1]))
    assert calls[-1] == ("salun_fast.masked_sgd_", {FIRST, torch.device("cpu")})
    assert all(devices == {torch.device("cpu")} for _, devices in calls[:-1])


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_torchs_own_switches_change_nothing(fake, flags):
    optimizer = masked(fake_parameters(), FUSED[5], **flags)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=FIRST)
    assert stepped(optimizer) == [("salun_fast.masked_adam_", {FIRST})]


def test_state_lies_beside_its_parameter_in_fp32(fake):
    params = fake_parameters(torch.bfloat16, FIRST, SECOND)
    optimizer = masked(params, FUSED[-1])
    stepped(optimizer)
    for param in params:
        for key, value in optimizer.state[param].items():
            assert value.device == param.device, key
            assert value.dtype == torch.float32, key
        assert optimizer.state[param]["step"].dim() == 0


def test_two_devices_are_two_calls_and_scalars_follow(fake):
    optimizer = masked(fake_parameters(torch.float32, FIRST, SECOND), FUSED[5])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=FIRST)
    optimizer.found_inf = torch.tensor(0.0, device=FIRST)
    calls = stepped(optimizer)
    steps = [devices for name, devices in calls if name == "salun_fast.masked_adam_"]
    assert steps == [{FIRST}, {SECOND}]
    others = [call for call in calls if not call[0].startswith("salun_fast")]
    assert others == [("aten._to_copy", {FIRST, SECOND})] * 2  # lr and found_inf


@pytest.mark.parametrize("over", [True, False], ids=["masked", "all"])
def test_clipping_by_norm_waits_for_nothing(fake, over):
    params = fake_parameters(torch.float32, FIRST, SECOND)
    optimizer = masked(params, FUSED[0])
    for param in params:
        param.grad = torch.empty_like(param)
    assert optimizer.clip_grad_norm_(1.0, masked=over).device.type == "cuda"


def test_scores_are_added_once_per_device_where_the_gradients_are(fake):
    params = dict(named(fake_parameters(torch.float32, FIRST, SECOND)))
    sums = ScoreSums(params, "sum")
    with recorded() as calls:
        sums.add({name: torch.empty_like(param) for name, param in params.items()})
    added = [devices for name, devices in calls if name == "salun_fast.accumulate_"]
    assert added == [{FIRST}, {SECOND}]


def test_scores_on_several_devices_are_ranked_on_the_first_and_words_go_home(fake):
    scores = {name: p.detach() for name, p in named(fake_parameters(torch.float32, FIRST, SECOND))}
    with recorded() as calls:
        mask = Saliency.from_dict(scores).mask(0.5)
    assert [devices for name, devices in calls if name == "salun_fast.select"] == [{FIRST}]
    assert all(mask.words[name].device == score.device for name, score in scores.items())


def test_state_left_on_the_cpu_is_fetched_once(fake):
    params = fake_parameters()
    optimizer = masked(params, FUSED[6])
    stepped(optimizer)
    for param in params:
        state = optimizer.state[param]
        state.update({key: torch.empty_like(value, device="cpu") for key, value in state.items()})
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=FIRST)
    assert stepped(optimizer) == [("salun_fast.masked_adam_", {FIRST})]
    assert {value.device for p in params for value in optimizer.state[p].values()} == {FIRST}


def test_a_checkpoint_of_torch_from_the_cpu_is_loaded_beside_the_parameters(fake):
    source = torch.optim.AdamW(fake_parameters(torch.bfloat16, torch.device("cpu")))
    for param in source.param_groups[0]["params"]:
        moments = {key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq")}
        source.state[param] = {"step": torch.tensor(3.0), **moments}
    params = fake_parameters(torch.bfloat16)
    optimizer = SalUnOptimizer(params, torch.optim.AdamW)
    optimizer.load_state_dict(source.state_dict())
    for param in params:
        for key, value in optimizer.state[param].items():
            assert (value.device, value.dtype) == (FIRST, torch.float32), key


# --- a capture, without a GPU ---------------------------------------------------------------------


@pytest.fixture
def capture(monkeypatch):
    """Make this process believe, when called, that a CUDA graph is being captured."""

    def begin() -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    return begin


def test_nothing_looks_into_a_captured_step(capture, monkeypatch):
    params = parameters()
    optimizer = FUSED[5].salun(named(params), mask=mask_of(kept(params)), error_if_nonfinite=True)
    give_gradients(params, 2)
    optimizer.step()
    optimizer.set_mask(mask_of(kept(params)))  # its first step is to be checked again
    params[4].grad = torch.full_like(params[4], float("nan"))
    capture()
    monkeypatch.setattr("salun_fast.optimizer.MaskWitness", None)
    monkeypatch.setattr("salun_fast.optimizer.refuse_nonfinite", None)
    optimizer.step()
    monkeypatch.undo()
    with pytest.raises(NonfiniteGradientError):
        optimizer.step()  # and the checks come back


@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_a_capture_that_would_create_state_is_refused(capture, case):
    params = parameters()
    optimizer = case.salun(named(params), mask=mask_of(kept(params)))
    give_gradients(params, 2)
    capture()
    with pytest.raises(RuntimeError, match=r"'w0' has no optimizer state .* one ordinary step"):
        optimizer.step()
    assert not any(optimizer.state.values())


def test_without_a_gpu_nothing_is_being_captured():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert not _capture.capturing()


# --- a GPU ----------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")


def pair(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cuda", **options: Any
) -> Any:
    """The same parameters under the same mask on the CPU and on a GPU."""
    sides = [parameters(dtype), parameters(dtype, device=device)]
    masks = kept(sides[0])
    return [(params, case.salun(named(params), mask=mask_of(masks), **options)) for params in sides]


def assert_same_bits(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    """Parameters and every state tensor."""
    for mine, theirs in zip(left[0], right[0], strict=True):
        assert same_bytes(mine.detach(), theirs.detach().cpu())
        states = left[1].state[mine], right[1].state[theirs]
        assert states[0].keys() == states[1].keys()
        for key in states[0]:
            assert same_bytes(states[0][key], states[1][key].cpu()), key


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_gpu_steps_have_the_bits_of_the_cpu(case, dtype):
    cpu, cuda = pair(case, dtype)
    for params, optimizer in (cpu, cuda):
        run(optimizer, params, range(5))
    assert_same_bits(cpu, cuda)


@gpu
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_gpu_selection_has_the_bits_of_the_cpu(density):
    scores = {f"w{i}": p.detach() for i, p in enumerate(parameters())}
    scores["w13"] = torch.zeros(100_000)  # ties
    found = Saliency.from_dict({name: score.cuda() for name, score in scores.items()}).mask(density)
    assert all(words.device.type == "cuda" for words in found.words.values())
    assert found == Saliency.from_dict(scores).mask(density)


@gpu
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_a_captured_step_replays_with_another_learning_rate(case):
    cpu, cuda = pair(case)
    params, optimizer = cuda
    lr = torch.tensor(0.05, device="cuda")
    for side in (cpu, cuda):
        side[1].param_groups[0]["lr"] = lr.cpu() if side is cpu else lr
        run(side[1], side[0], range(2, 4))  # from step 2 on every parameter has a gradient
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step, rate in enumerate((0.05, 0.01, 0.2), start=4):
        lr.fill_(rate)
        cpu[1].param_groups[0]["lr"] = lr.cpu()
        held = [param.grad for param in params]
        give_gradients(params, step)
        for param, grad in zip(params, held, strict=True):
            grad.copy_(param.grad)
            param.grad = grad
        graph.replay()
        run(cpu[1], cpu[0], range(step, step + 1))
    assert_same_bits(cpu, cuda)


@gpu
@pytest.mark.parametrize("case", FUSED, ids=case_id)
def test_parameters_that_move_to_the_gpu_take_mask_and_state_along(case):
    stay, move = pair(case, device="cpu")
    run(stay[1], stay[0], range(5))
    run(move[1], move[0], range(3))
    for param in move[0]:
        param.grad, param.data = None, param.data.cuda()
    run(move[1], move[0], range(3, 5))
    assert {param.device.type for param in move[0]} == {"cuda"}
    assert_same_bits(stay, move)


@gpu
def test_steps_run_on_the_current_stream():
    cpu, cuda = pair(FUSED[5])
    run(cpu[1], cpu[0], range(2, 5))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(2, 5):
            torch.cuda._sleep(20_000_000)  # whatever ran on another stream would be far ahead
            run(cuda[1], cuda[0], range(step, step + 1))
    stream.synchronize()
    assert_same_bits(cpu, cuda)


@gpu
def test_gradscaler_skips_on_the_gpu_without_advancing_anything():
    params = parameters(device="cuda")
    optimizer = FUSED[5].salun(named(params), mask=mask_of(kept(params)))
    before = [param.detach().clone() for param in params]
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaler.scale(torch.tensor(1.0, device="cuda"))
    give_gradients(params, 5, poison=[mask.cuda() for mask in kept(params)])
    scaler.step(optimizer)
    scaler.update()
    assert all(same_bytes(p.detach().cpu(), b.cpu()) for p, b in zip(params, before, strict=True))
    assert not any(bool(v.any()) for state in optimizer.state.values() for v in state.values())


@gpu
def test_saliency_measured_on_the_gpu_is_the_cpu_s():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 33)
    inputs = torch.randint(-4, 5, (16, 64)).float()  # exact sums, in any order
    masks = []
    for device in ("cpu", "cuda"):
        saliency = Saliency(model.to(device))
        with saliency.measure():
            model(inputs.to(device)).sum().backward()
        masks.append(saliency.mask(0.3))
    assert masks[0] == masks[1]


@gpus
def test_parameters_on_two_gpus_step_as_on_one():
    cpu, _ = pair(FUSED[5])
    params = [Parameter(p.detach().to(f"cuda:{i % 2}")) for i, p in enumerate(parameters())]
    optimizer = FUSED[5].salun(named(params), mask=mask_of(kept(parameters())))
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02, device="cuda:0")
    cpu[1].param_groups[0]["lr"] = torch.tensor(0.02)
    run(cpu[1], cpu[0], range(5))
    run(optimizer, params, range(5))
    assert_same_bits(cpu, (params, optimizer))
