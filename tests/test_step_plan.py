"""Steps that reuse what the last one collected: whatever happens in between, they do as one that
collects everything anew, errors included."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import same_bytes

SHAPES = {
    "conv": (6, 3, 3, 3),
    "bias": (6,),
    "head": (5, 8),
    "late": (7,),
    "scale": (),
    "twin": (6,),
}
OPTIONS = {
    torch.optim.SGD: {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    torch.optim.AdamW: {"lr": 0.02, "amsgrad": True, "eps": 1e-3},
}


class Subject:
    """An optimizer of two groups on a few parameters, and the gradients that they are given."""

    def __init__(self, kind, *, planned: bool, dtype=torch.float32, **options) -> None:
        torch.manual_seed(0)
        self.params = {n: nn.Parameter(torch.randn(s).to(dtype)) for n, s in SHAPES.items()}
        named = list(self.params.items())
        groups = [{"params": named[:3]}, {"params": named[3:], "weight_decay": 0.3}]
        self.optimizer = SalUnOptimizer(groups, kind, **{**OPTIONS[kind], **options})
        self.optimizer.set_mask(self.mask(1))
        self.idle = {"late"}
        self.seed = 0
        self.planned = planned

    def mask(self, seed: int) -> SaliencyMask:
        random = torch.Generator().manual_seed(seed)
        chosen = {n: torch.rand(s, generator=random) < 0.5 for n, s in SHAPES.items()}
        return SaliencyMask.from_dict({**chosen, "head": torch.eye(5, 8).bool()})

    @property
    def conv(self) -> nn.Parameter:
        return self.params["conv"]

    def state(self, name: str) -> dict[str, torch.Tensor]:
        return self.optimizer.state[self.params[name]]

    def moment(self) -> str:
        return next(key for key in self.state("conv") if key != "step")

    def give_gradients(self) -> None:
        self.seed += 1
        random = torch.Generator().manual_seed(self.seed)
        for name, param in self.params.items():
            grad = torch.randn(param.shape, generator=random).to(param)
            param.grad = None if name in self.idle else grad

    def step(self) -> str:
        """What it raised, if it did."""
        if not self.planned:
            self.optimizer._plan = None
        try:
            self.optimizer.step()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def tensors(self) -> list[torch.Tensor]:
        state = [v for name in self.params for v in self.state(name).values()]
        return [t.detach() for t in (*self.params.values(), *state) if isinstance(t, torch.Tensor)]


def warm(kind, *, planned: bool = True, **options) -> Subject:
    subject = Subject(kind, planned=planned, **options)
    for _ in range(3):
        subject.give_gradients()
        assert not subject.step()
    return subject


def _give_late(s):
    s.idle.clear()


def _drop_a_gradient(s):
    s.idle.add("bias")


def _drop_all_of_a_group(s):
    s.idle |= {"conv", "bias", "head"}


def _another_mask(s):
    s.optimizer.set_mask(s.mask(2))


def _no_mask(s):
    s.optimizer.set_mask(None)


def _replace_a_state_tensor(s):
    s.state("conv")[s.moment()] = torch.full(SHAPES["conv"], 0.5)


def _replace_an_entry(s):
    s.optimizer.state[s.conv] = {key: value * 2 for key, value in s.state("conv").items()}


def _exchange_entries(s):
    """In the same order as before."""
    others = {s.params["bias"]: s.params["twin"], s.params["twin"]: s.params["bias"]}
    state = s.optimizer.state
    exchanged = {others.get(param, param): entry for param, entry in state.items()}
    state.clear()
    state.update(exchanged)


def _clear_state(s):
    s.optimizer.state.clear()


def _new_state_dict(s):
    state = s.optimizer.state
    s.optimizer.state = type(state)(dict, {p: copy.deepcopy(e) for p, e in state.items()})


def _delete_a_state_tensor(s):
    del s.state("conv")[s.moment()]


def _no_state_tensor(s):
    s.state("conv")[s.moment()] = None


def _state_of_another_dtype(s):
    s.state("bias")[s.moment()] = s.state("bias")[s.moment()].double()


def _sparse_state(s):
    s.state("head")[s.moment()] = s.state("head")[s.moment()].to_sparse()


def _state_elsewhere(s):
    s.state("head")[s.moment()] = s.state("head")[s.moment()].to("meta")


def _counter_is_a_number(s):
    s.state("conv")["step"] = 3.0


def _other_memory(s):
    s.conv.data = s.conv.data * 2


def _channels_last(s):
    s.conv.data = s.conv.data.contiguous(memory_format=torch.channels_last)


def _channels_last_in_place(s):
    s.conv.grad = None
    s.conv.data.as_strided_(SHAPES["conv"], (27, 1, 9, 3))


def _everything_channels_last(s):
    for tensors in (s.state("conv"), {"": s.conv}):
        for tensor in tensors.values():
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _half(s):
    s.conv.data = s.conv.data.bfloat16()


def _all_half(s):
    for param in s.params.values():
        param.grad, param.data = None, param.data.bfloat16()


def _double(s):
    s.params["scale"].grad = None
    s.params["scale"].data = s.params["scale"].data.double()


def _elsewhere(s):
    twin = nn.Parameter(torch.zeros(SHAPES["bias"], device="meta"))
    torch.utils.swap_tensors(s.params["bias"], twin)


def _other_size(s):
    s.params["bias"].grad = None
    s.params["bias"].data = torch.ones(9)


def _replace_a_parameter(s):
    twin = nn.Parameter(s.conv.detach().clone())
    s.optimizer.param_groups[0]["params"][0] = s.params["conv"] = twin


def _reorder(s):
    for key in ("params", "param_names"):
        s.optimizer.param_groups[0][key] = s.optimizer.param_groups[0][key][::-1]


def _rename(s):
    s.optimizer.param_groups[0]["param_names"][:] = ["bias", "conv", "head"]


def _remove_from_a_group(s):
    for key in ("params", "param_names"):
        s.optimizer.param_groups[0][key].pop()


def _remove_a_group(s):
    del s.optimizer.param_groups[0]


def _exchange_groups(s):
    s.optimizer.param_groups.reverse()


def _add_a_group(s):
    s.params["more"] = nn.Parameter(torch.ones(4))
    s.optimizer.add_param_group({"params": [("more", s.params["more"])]})


def _other_options(s):
    group = s.optimizer.param_groups[0]
    group.update(lr=0.5, weight_decay=0.0, **({"momentum": 0.0} if "momentum" in group else {}))
    group.update({"amsgrad": False} if "amsgrad" in group else {})


def _load(s):
    saved = copy.deepcopy(s.optimizer.state_dict())
    s.give_gradients()
    s.step()
    s.optimizer.load_state_dict(saved)


def _step_unmasked(s):
    with s.optimizer.unmasked():
        s.give_gradients()
        s.step()


def _step_in_backward(s):
    with s.optimizer.step_in_backward():
        s.params["head"].sum().backward()


def _clip(s):
    s.give_gradients()
    s.optimizer.clip_grad_norm_(0.1)


def _copy(s):
    s.optimizer, s.params = copy.deepcopy((s.optimizer, s.params))


EVENTS = [value for name, value in list(globals().items()) if name.startswith("_") and
          getattr(value, "__module__", None) == __name__]  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__.strip("_"))
def test_whatever_happens_between_steps_a_planned_step_is_as_a_fresh_one(kind, event):
    subjects = [warm(kind, planned=planned) for planned in (True, False)]
    for _ in range(3):  # the event, and what follows it
        said = []
        for subject in subjects:
            event(subject)
            subject.give_gradients()
            said.append(subject.step())
        assert said[0] == said[1]
        event = _nothing
    left, right = (subject.tensors() for subject in subjects)
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert ours.device.type == "meta" or same_bytes(ours.to_dense(), theirs.to_dense())


def _nothing(s):
    pass


def _other_strides(grad):
    return grad.contiguous(memory_format=torch.channels_last)


def _expanded(grad):
    return torch.full((), 0.25).expand(grad.shape)


def _negated(grad):
    return torch.complex(torch.zeros_like(grad), grad).conj().imag


GRADIENTS = {
    "other-strides": ("conv", _other_strides),
    "expanded": ("conv", _expanded),
    "negated": ("bias", _negated),
    "subclass": ("bias", lambda grad: TwoTensor(grad, grad)),
    "sparse": ("head", lambda grad: grad.to_sparse()),
    "sparse-in-the-second-group": ("scale", lambda grad: grad.to_sparse()),
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_unusual_gradients_are_taken_or_refused_as_ever(kind, name):
    where, change = GRADIENTS[name]
    found = []
    for planned in (True, False):
        subject = warm(kind, planned=planned)
        before = [tensor.clone() for tensor in subject.tensors()]
        subject.give_gradients()
        subject.params[where].grad = change(subject.params[where].grad)
        said = subject.step()
        if name.startswith("sparse"):
            assert said.startswith(f"TypeError: the gradient of '{where}' is torch.sparse")
            assert all(same_bytes(a, b) for a, b in zip(subject.tensors(), before, strict=True))
        found.append((said, subject.tensors()))
    assert found[0][0] == found[1][0]
    assert all(same_bytes(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize(
    "event", [_nothing, _give_late, _half, _rename], ids=lambda event: event.__name__.strip("_")
)
@pytest.mark.parametrize("mode", ["master", "stochastic"])
def test_half_precision_goes_by_the_plan_too(mode, event):
    found = []
    for planned in (True, False):
        dtype = torch.float32 if event is _half else torch.bfloat16
        subject = warm(torch.optim.AdamW, planned=planned, dtype=dtype, half_precision=mode, seed=7)
        event(subject)
        for _ in range(3):
            subject.give_gradients()
            assert not subject.step()
        found.append(subject.tensors())
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", OPTIONS)
def test_steps_after_the_first_collect_nothing(kind, monkeypatch):
    subject = warm(kind)
    monkeypatch.setattr(subject.optimizer, "_collect", lambda: pytest.fail("collected"))
    before = subject.conv.detach().clone()
    for _ in range(2):
        subject.give_gradients()
        assert not subject.step()
    mask = subject.mask(1)["conv"]
    assert torch.equal(subject.conv.detach() != before, mask)


def test_a_plan_keeps_no_gradient_and_no_state_that_was_moved_away():
    subject = warm(torch.optim.AdamW)
    seen = weakref.ref(subject.conv.grad), weakref.ref(subject.state("conv")["exp_avg"])
    subject.optimizer.zero_grad()
    for entry in subject.optimizer.state.values():  # as those do who offload state
        entry.update({key: value.clone() for key, value in entry.items()})
    assert [reference() for reference in seen] == [None, None]


def test_a_second_call_that_is_refused_takes_the_long_way_alone():
    """The first group has moved then: it must not move again."""
    found = []
    for planned in (True, False):
        subject = warm(torch.optim.AdamW, planned=planned)
        subject.give_gradients()
        entry = subject.state("scale")
        entry["exp_avg"] = entry["exp_avg"].reshape(1).expand(1)[0].to(torch.float64)
        said = subject.step()
        assert "exp_avgs: 'scale' is torch.float64" in said
        found.append(subject.tensors())
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))
