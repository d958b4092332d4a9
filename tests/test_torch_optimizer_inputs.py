"""torch's own optimizer inputs, with which it tests its optimizers, run under a full mask.

``torch.testing._internal.common_optimizers``: every configuration of every class that can run
under a mask must do what the class does, and every error input raise what it raises.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

from salun_fast._fused_step import FUSED_CLASSES
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import same_bytes

# LBFGS and SparseAdam cannot run under a mask at all; they are refused, by name.
REFUSED = {"LBFGS", "SparseAdam"}
INFOS = [info for info in optim_db if info.optim_cls.__name__ not in REFUSED]
NAMES = [info.optim_cls.__name__ for info in INFOS]


def configurations(info) -> list[dict[str, Any]]:
    """All of torch's, with foreach, fused and differentiable each on and off."""
    found = _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info)
    return [{"desc": given.desc, **given.kwargs} for given in found]


def weights() -> list[tuple[str, nn.Parameter]]:
    """2-dim: Muon takes no others."""
    torch.manual_seed(0)
    return [(f"w{i}", nn.Parameter(torch.randn(shape))) for i, shape in enumerate([(9, 5), (3, 4)])]


def full(named: list[tuple[str, nn.Parameter]]) -> SaliencyMask:
    ones = {name: torch.ones(param.shape, dtype=torch.bool) for name, param in named}
    return SaliencyMask.from_dict(ones)


def steps(optimizer: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]]) -> list[float]:
    """Four steps on one loss, one of them by a closure; the losses."""
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((param.sin() * (i + 1)).sum() for i, (_, param) in enumerate(named))
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(3):
        closure()
        optimizer.step()
    optimizer.step(closure)
    return losses


def groups(named: list[tuple[str, nn.Parameter]], grouped: bool) -> list[Any]:
    """One group, or two of which the second has settings of its own."""
    if not grouped:
        return named
    return [{"params": named[:1]}, {"params": named[1:], "lr": 3e-3, "weight_decay": 0.07}]


@pytest.mark.parametrize("grouped", [False, True], ids=["one-group", "two-groups"])
@pytest.mark.parametrize("masked", [True, False], ids=["full-mask", "no-mask"])
@pytest.mark.parametrize("info", INFOS, ids=NAMES)
def test_every_configuration_does_what_the_class_does(info, masked, grouped):
    ran = 0
    for options in configurations(info):
        name = options.pop("desc")
        if options.get("differentiable"):
            with pytest.raises(ValueError, match="differentiable=True is not supported"):
                SalUnOptimizer(weights(), info.optim_cls, **copy.deepcopy(options))
            continue
        ours, theirs = weights(), weights()
        mask = full(ours) if masked else None
        left = SalUnOptimizer(
            groups(ours, grouped), info.optim_cls, mask=mask, **copy.deepcopy(options)
        )
        right = info.optim_cls(
            groups(theirs, grouped), **{**copy.deepcopy(options), **loop(info, options)}
        )
        assert steps(left, ours) == pytest.approx(steps(right, theirs), rel=1e-5), name
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            # torch's vectorised square root, which Adam takes, may be an ulp off.
            torch.testing.assert_close(mine, other, rtol=2e-6, atol=1e-7, msg=name)
            if info.optim_cls is torch.optim.SGD or info.optim_cls not in FUSED_CLASSES:
                assert same_bytes(mine.detach(), other.detach()), name
        ran += 1
    assert ran >= len(info.optim_inputs_func(device="cpu"))


def loop(info, options: dict[str, Any]) -> dict[str, Any]:
    """The class's plain loop, whose bits ours have; other classes step as they were told."""
    if info.optim_cls in FUSED_CLASSES:
        return {"foreach": False, "fused": False}
    return {}


@pytest.mark.parametrize("info", INFOS, ids=NAMES)
def test_error_inputs_raise_what_torch_raises(info):
    seen = 0
    for given in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        if given.error_on is not OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        params = given.optimizer_error_input.params
        options = given.optimizer_error_input.kwargs
        params = [p for _, p in weights()] if params is None else params
        if issubclass(given.error_type, Warning):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                SalUnOptimizer(params, info.optim_cls, **options)
            assert any("duplicate parameters" in str(warning.message) for warning in caught)
        else:
            with pytest.raises(given.error_type, match=given.error_regex) as theirs:
                info.optim_cls(params, **options)
            with pytest.raises(given.error_type) as ours:
                SalUnOptimizer(params, info.optim_cls, **options)
            assert str(ours.value) == str(theirs.value)
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_classes_that_cannot_run_under_a_mask_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} cannot run under a saliency mask"):
        SalUnOptimizer(weights(), getattr(torch.optim, name))
