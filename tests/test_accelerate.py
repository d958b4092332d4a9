"""Hugging Face accelerate: prepare, gradient accumulation, save_state/load_state, GradScaler.

Sharding by accelerate is in distributed/test_replaced_parameters.py; a whole loop in examples/.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from salun_fast import optimizer as optimizer_module
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import clones, same_bytes

CLASSES = {"fused": torch.optim.AdamW, "general": torch.optim.NAdam}


@pytest.fixture(autouse=True)
def _singletons():
    """accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Net(nn.Module):
    """With integer weights, and integer gradients for integer inputs: sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 3)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randint(-4, 5, param.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def mask() -> SaliencyMask:
    generator = torch.Generator().manual_seed(5)
    return SaliencyMask.from_dict(
        {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in Net().named_parameters()}
    )


def batch(seed: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (size, 6), generator=generator).float()


def loss_of(output: Tensor) -> Tensor:
    return (output * torch.tensor([1.0, -2.0, 3.0])).sum(1).mean()


def made(kind: str = "fused", **options: Any) -> tuple[Net, SalUnOptimizer]:
    model = Net()
    options = {"lr": 0.01, "weight_decay": 0.1, **options}
    return model, SalUnOptimizer(model.named_parameters(), CLASSES[kind], **options)


def steps(model: nn.Module, optimizer: Any, backward: Any, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        backward(loss_of(model(batch(seed))))
        optimizer.step()


def contents(model: nn.Module, optimizer: SalUnOptimizer) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [v for p in params for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    return clones([*(param.detach() for param in model.parameters()), *state])


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(same_bytes(a, b) for a, b in zip(left, right, strict=True))


def assert_frozen(model: nn.Module, start: nn.Module) -> None:
    """Frozen weights have the bytes of ``start``, and others moved."""
    moved = 0
    for (name, old), new in zip(start.named_parameters(), model.parameters(), strict=True):
        frozen = ~mask()[name]
        assert same_bytes(new.detach()[frozen], old.detach()[frozen]), name
        moved += int((new != old).sum())
    assert moved


# --- prepare --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_prepare_in_the_middle_of_training_changes_no_bit(kind):
    """It writes the optimizer's state out and loads it again, mask included."""
    found = []
    for prepared in (False, True):
        model, salun = made(kind, mask=mask())
        steps(model, salun, Tensor.backward, range(2))
        optimizer, backward = salun, Tensor.backward
        if prepared:
            accelerator = Accelerator(cpu=True)
            model, optimizer = accelerator.prepare(model, salun)
            backward = accelerator.backward
            assert optimizer.optimizer is salun
            assert salun.mask == mask()
        steps(model, optimizer, backward, range(2, 5))
        assert_frozen(model, Net())
        found.append(contents(model, salun))
    assert_equal(*found)


def test_the_first_step_after_prepare_is_still_checked(monkeypatch):
    """That the mask acts, by the checksums of frozen weights."""

    def heedless_step(group: Any, items: Any, *others: Any) -> None:
        for item in items:
            item.param.add_(1.0)

    model, salun = made(mask=mask())
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, salun)
    monkeypatch.setattr(optimizer_module, "fused_step", heedless_step)
    with pytest.raises(optimizer_module.MaskNotApplied, match="changed frozen weights"):
        steps(model, optimizer, accelerator.backward, range(1))


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_two_half_batches_accumulated_have_the_bits_of_one(kind):
    """Scores and steps alike: all means are of integers."""
    whole, salun = made(kind)
    with salun.measure_saliency():
        loss_of(whole(batch(0))).backward()
    expected = salun.select(0.4)
    steps(whole, salun, Tensor.backward, range(1))

    halves, own = made(kind)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(halves, own)
    calls = []

    def run(step: bool) -> None:
        for x in batch(0).chunk(2):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(x)))
                if step:
                    optimizer.step()
                    optimizer.zero_grad()
                    calls.append(len(own.state))

    with own.measure_saliency():
        run(step=False)
    assert own.select(0.4) == expected
    run(step=True)
    assert calls == [0, 4]  # the first half made no step
    assert_equal(contents(whole, salun), contents(model, own))


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_a_run_resumed_by_load_state_has_the_bits_of_one_that_went_on(kind, tmp_path):
    """Into a new model and an optimizer without a mask."""

    def start(own: SaliencyMask | None) -> tuple[Any, ...]:
        model, salun = made(kind, mask=own)
        accelerator = Accelerator(cpu=True)
        return accelerator, *accelerator.prepare(model, salun), salun

    accelerator, model, optimizer, salun = start(mask())
    steps(model, optimizer, accelerator.backward, range(3))
    accelerator.save_state(tmp_path / "state")
    steps(model, optimizer, accelerator.backward, range(3, 6))
    expected = contents(model, salun)
    assert_frozen(model, Net())

    accelerator, model, optimizer, salun = start(None)
    accelerator.load_state(tmp_path / "state")
    assert salun.mask == mask()
    steps(model, optimizer, accelerator.backward, range(3, 6))
    assert_equal(contents(model, salun), expected)


def test_a_saved_state_holds_tensors_and_plain_values_only(tmp_path):
    """Nothing in it runs code when it is loaded."""
    model, salun = made(mask=mask())
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, salun)
    accelerator.save_state(tmp_path / "state")
    saved = torch.load(tmp_path / "state" / "optimizer.bin", weights_only=True)
    assert saved["salun_mask"]["fingerprint"] == mask().fingerprint


# --- mixed precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_autocast_steps_keep_frozen_bytes(kind):
    model, salun = made(kind)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, optimizer = accelerator.prepare(model, salun)
    seen = []
    model.first.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    salun.set_mask(mask())
    steps(model, optimizer, accelerator.backward, range(3))
    assert seen == [torch.bfloat16] * 3
    assert_frozen(model, Net())


@pytest.mark.parametrize("kind", CLASSES)
def test_a_step_that_the_scaler_skips_changes_nothing(kind):
    """accelerate swaps the optimizer's ``step`` for one that tells it of the call. A fused step is
    called all the same and skips by itself, as torch's with ``fused=True``: ``step_was_skipped``
    stays False with both."""
    model, salun = made(kind, mask=mask())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(salun, device_placement=True, scaler=scaler)
    plain, twin = made(kind, mask=mask())

    def step(model: nn.Module, optimizer: Any, scaled: Any, bad: bool = False) -> None:
        optimizer.zero_grad()
        scaled(loss_of(model(batch(0)))).backward()
        if bad:
            model.first.weight.grad[0, 0] = torch.inf
        optimizer.step()

    for bad in (False, True, False):
        before, scale = contents(model, salun), scaler.get_scale()
        step(model, optimizer, scaler.scale, bad)
        if bad:
            assert_equal(contents(model, salun), before)
            assert scaler.get_scale() == scale / 2
        else:
            step(plain, twin, lambda loss: loss)
            assert_equal(contents(model, salun), contents(plain, twin))
        assert optimizer.step_was_skipped == (bad and kind == "general")
    assert_frozen(model, Net())
