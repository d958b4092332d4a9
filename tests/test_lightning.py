"""Lightning: closures, its wrapper of the optimizer, clipping, precision, checkpoints."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.wrappers import _FabricOptimizer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import salun_fast.optimizer
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import MaskNotApplied, NonfiniteGradientError, SalUnOptimizer
from tests.conftest import same_bytes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")

CLIP, BATCHES = 0.05, 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


def half_of(net: nn.Module) -> SaliencyMask:
    generator = torch.Generator().manual_seed(3)
    return SaliencyMask.from_dict(
        {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in net.named_parameters()}
    )


def loader(bad: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES * 5, 6, generator=generator)
    if bad:
        x[-1] = float("nan")
    y = torch.randint(4, (len(x),), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=5)


def optimizer_of(net: nn.Module, mask: SaliencyMask | None, **options: Any) -> SalUnOptimizer:
    given = {"lr": 0.02, "weight_decay": 0.1, "fused": False, **options}
    return SalUnOptimizer(net.named_parameters(), torch.optim.AdamW, mask=mask, **given)


class Module(lightning.LightningModule):
    """``manual``: steps by itself, as GANs do. ``options``: of the optimizer."""

    def __init__(self, masked: bool = True, manual: bool = False, **options: Any) -> None:
        super().__init__()
        self.net = network()
        self.mask = half_of(self.net) if masked else None
        self.automatic_optimization = not manual
        self._options = options

    def configure_optimizers(self) -> SalUnOptimizer:
        return optimizer_of(self.net, self.mask, **self._options)

    def on_train_batch_start(self, _: Any, index: int) -> None:
        torch.manual_seed(index)  # for dropout: Lightning's checkpoints hold no random state

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.clip_grad_norm_(CLIP)
            optimizer.step()
        return loss


def fit(module: Module, *, epochs: int = 2, bad: bool = False, resume: Any = None, **options: Any):
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **{"enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(module, loader(bad), ckpt_path=resume)
    return trainer.optimizers[0]


def by_hand(bf16: bool, accumulate: int) -> nn.Module:
    """The loop that Lightning is expected to run."""
    net = network()
    optimizer = optimizer_of(net, half_of(net))
    for _ in range(2):
        for index, (x, y) in enumerate(loader()):
            torch.manual_seed(index)
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                loss = cross_entropy(net(x), y) / accumulate
            loss.backward()
            if (index + 1) % accumulate == 0:
                optimizer.clip_grad_norm_(CLIP)
                optimizer.step()
                optimizer.zero_grad()
    return net


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert same_bytes(a, b), name


def assert_frozen(net: nn.Module, mask: SaliencyMask) -> None:
    for (name, now), original in zip(net.named_parameters(), network().parameters(), strict=True):
        assert same_bytes(now[~mask[name]], original[~mask[name]]), name
        assert not torch.equal(now[mask[name]], original[mask[name]]), name


# --- fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "accumulate"), [("32-true", 1), ("bf16-mixed", 2)])
def test_a_fit_has_the_bits_of_the_loop_by_hand(precision, accumulate):
    module = Module()
    fit(module, precision=precision, accumulate_grad_batches=accumulate, gradient_clip_val=CLIP)
    assert_same_weights(module.net, by_hand(precision == "bf16-mixed", accumulate))
    assert_frozen(module.net, module.mask)


def test_manual_optimization_has_the_bits_of_automatic():
    module = Module(manual=True)
    fit(module)
    assert_same_weights(module.net, by_hand(bf16=False, accumulate=1))


def test_fp16_unscales_clips_and_skips_an_overflow():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    module = Module(lr=0.5)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    optimizer = fit(module, gradient_clip_val=CLIP, plugins=plugin)
    steps = float(optimizer.state[module.net[0].weight]["step"])
    assert 0 < steps < 2 * BATCHES
    assert_frozen(module.net, module.mask)


def test_the_checkpoint_holds_the_mask_and_a_resumed_fit_has_the_same_bits(tmp_path: Path):
    whole = Module()
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    expected = fit(whole, epochs=3, callbacks=[keep], enable_checkpointing=True)
    path = tmp_path / "epoch=1.ckpt"
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]
    assert saved["salun_mask"]["fingerprint"] == whole.mask.fingerprint
    resumed = Module(masked=False)
    optimizer = fit(resumed, epochs=3, resume=path)
    assert optimizer.mask == whole.mask
    assert_same_weights(resumed.net, whole.net)
    for left, right in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert all(same_bytes(left[key], right[key]) for key in right)


# --- closures -------------------------------------------------------------------------------------


def test_a_step_while_measuring_is_refused_before_its_closure_runs():
    net = network()
    optimizer = optimizer_of(net, None)
    with optimizer.measure_saliency() as saliency:
        with pytest.raises(RuntimeError, match="inside measure_saliency"):
            optimizer.step(lambda: pytest.fail("the closure ran"))
        assert saliency.batches == 0


def test_a_gradient_that_is_nan_stops_the_fit_with_nothing_changed():
    module = Module(error_if_nonfinite=True)
    with pytest.raises(NonfiniteGradientError, match=r"'0.weight'|'3.weight'"):
        fit(module, bad=True, epochs=1)
    assert all(bool(p.isfinite().all()) for p in module.net.parameters())


def test_the_mask_is_checked_with_the_gradients_that_the_closure_made(monkeypatch):
    step = salun_fast.optimizer.fused_step

    @functools.wraps(step)
    def without_mask(group, items, *rest):
        step(group, [item._replace(words=item.words[:0]) for item in items], *rest)

    monkeypatch.setattr(salun_fast.optimizer, "fused_step", without_mask)
    with pytest.raises(MaskNotApplied, match="frozen weights of '0.weight'"):
        fit(Module(), epochs=1)


# --- wrappers -------------------------------------------------------------------------------------

WRAPPERS = [LightningOptimizer, functools.partial(_FabricOptimizer, strategy=None)]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["lightning", "fabric"])
def test_what_is_called_on_a_wrapper_acts_on_the_optimizer(wrap):
    """Wrappers inherit from the optimizer's class, but what is set on them stays with them."""
    net = network()
    optimizer = optimizer_of(net, None)
    wrapper = wrap(optimizer)
    with wrapper.measure_saliency():
        with pytest.raises(RuntimeError, match="inside measure_saliency"):
            optimizer.step()
        net(torch.randn(5, 6)).square().sum().backward()
    mask = wrapper.select(0.4)
    assert optimizer.mask is wrapper.mask is mask
    with wrapper.unmasked():
        assert optimizer._dense_steps
    assert not optimizer._dense_steps
    saved = wrapper.optimizer.state_dict()
    wrapper.set_mask(None)
    assert optimizer.mask is None
    wrapper.load_state_dict(saved)
    assert optimizer.mask == mask
    with wrapper.step_in_backward():
        net(torch.randn(5, 6)).square().sum().backward()
    assert_frozen(net, mask)
