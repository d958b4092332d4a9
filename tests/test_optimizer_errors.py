"""What SalUnOptimizer refuses, and the words it uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import same_bytes


def _weight(size: int = 8) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size))


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.SGD, {"lr": -1.0}),
        (torch.optim.SGD, {"momentum": -0.1}),
        (torch.optim.SGD, {"nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1, "beta": 3}),
        (torch.optim.Adam, {"betas": (1.0, 0.9)}),
        (torch.optim.AdamW, {"eps": -1.0}),
        (torch.optim.RMSprop, {"alpha": -1.0}),
    ],
)
def test_hyper_parameters_are_validated_in_torchs_words(optimizer_class, options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        optimizer_class([_weight()], **options)
    with pytest.raises(theirs.type) as ours:
        SalUnOptimizer([_weight()], optimizer_class, **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state": "sparse"}, "'dense' or 'compact'"),
        ({"freeze": "always"}, "'exact' or 'gradient'"),
        ({"differentiable": True}, "differentiable=True"),
        ({"optimizer_class": torch.optim.LBFGS}, "LBFGS cannot run under a saliency mask"),
        ({"optimizer_class": torch.optim.SparseAdam}, "sparse gradients only"),
        ({"optimizer_class": SalUnOptimizer}, "pass the class it wraps"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SalUnOptimizer([_weight()], **options)


def test_an_instance_in_place_of_the_class_is_refused():
    with pytest.raises(TypeError, match="pass the class and its options apart"):
        SalUnOptimizer([_weight()], torch.optim.SGD([_weight()]))


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_implementation_options_of_torch_are_accepted(options):
    weight = _weight()
    optimizer = SalUnOptimizer([weight], torch.optim.AdamW, **options)
    weight.grad = torch.ones(8)
    optimizer.step()
    assert weight.detach().ne(0).all()


def test_complex_parameters_are_refused_by_name():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"'spectrum' is torch.complex64"):
        SalUnOptimizer([("spectrum", weight)])


def test_refused_group_is_not_added():
    optimizer = SalUnOptimizer([_weight()])
    with pytest.raises(TypeError, match=r"'1.0' is torch.complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3) + 0j)]})
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.add_param_group({"params": [_weight()], "differentiable": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_are_refused_by_name_with_nothing_changed(optimizer_class):
    dense = _weight()
    table = nn.Embedding(6, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = SalUnOptimizer([("dense", dense), ("table.weight", table.weight)], optimizer_class)
    dense.grad = torch.ones(8)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of 'table.weight' is torch.sparse_coo"):
        optimizer.step()
    assert same_bytes(table.weight, before)
    assert torch.equal(dense, torch.zeros(8))


def test_mask_of_another_shape_is_refused_by_name():
    mask = SaliencyMask.from_dict({"w": torch.ones(4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="'w'"):
        SalUnOptimizer([("w", _weight())], mask=mask)


def test_mask_that_selects_nothing_trainable_is_refused():
    lora, base = _weight(), _weight().requires_grad_(False)
    named = [("lora", lora), ("base", base)]
    chosen = torch.ones(8, dtype=torch.bool)
    mask = SaliencyMask.from_dict({"base": chosen, "lora": ~chosen})
    with pytest.raises(ValueError, match="selects no weight that this optimizer trains"):
        SalUnOptimizer(named, mask=mask)


def test_bits_for_a_parameter_of_another_shape_select_nothing():
    optimizer = SalUnOptimizer([("w", _weight()), ("v", _weight())])
    chosen = torch.ones(8, dtype=torch.bool)
    mask = SaliencyMask.from_dict({"w": ~chosen, "v": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(ValueError, match="selects no weight that this optimizer trains"):
        optimizer.set_mask(mask, strict=False)


def test_refused_mask_leaves_the_present_one():
    mask = SaliencyMask.from_dict({"w": torch.arange(8) < 3})
    optimizer = SalUnOptimizer([("w", _weight())], mask=mask)
    with pytest.raises(ValueError, match="selects no weight"):
        optimizer.set_mask(SaliencyMask.from_dict({"w": torch.zeros(8, dtype=torch.bool)}))
    assert optimizer.mask is mask


def test_parameter_with_gaps_in_memory_is_refused_by_name():
    weight = nn.Parameter(torch.zeros(4, 6)[:, ::2])
    with pytest.raises(ValueError, match=r"'w' of shape \(4, 3\) and strides \(6, 2\) has gaps"):
        SalUnOptimizer([("w", weight)])


def test_mask_without_an_entry_for_a_trainable_parameter_needs_strict_false():
    a, b = _weight(), _weight()
    chosen = torch.arange(8) < 3
    mask = SaliencyMask.from_dict({"module.a": chosen})  # prefixes of wrappers are known
    optimizer = SalUnOptimizer([("a", a), ("b", b)], lr=1.0)
    with pytest.raises(ValueError, match="'b' is a trainable parameter"):
        optimizer.set_mask(mask)
    optimizer.set_mask(mask, strict=False)
    a.grad, b.grad = -torch.ones(8), -torch.ones(8)
    optimizer.step()
    assert torch.equal(a, chosen.float())
    assert torch.equal(b, torch.ones(8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop])
def test_a_nonfinite_gradient_of_a_moving_weight_is_refused_by_name(kind, bad):
    params = [("a", torch.nn.Parameter(torch.ones(40))), ("b", torch.nn.Parameter(torch.ones(3)))]
    params.append(("empty", torch.nn.Parameter(torch.empty(0))))
    none, no_elements = torch.zeros(3, dtype=torch.bool), torch.empty(0, dtype=torch.bool)
    chosen = {"a": torch.arange(40) < 20, "b": none, "empty": no_elements}
    mask = SaliencyMask.from_dict(chosen)
    optimizer = SalUnOptimizer(params, kind, mask=mask, lr=0.1, error_if_nonfinite=True)
    for _, param in params:
        param.grad = torch.ones_like(param)
        param.grad[-1:] = bad  # frozen: does not matter
    optimizer.step()
    before = params[0][1].detach().clone()
    params[0][1].grad[3] = bad
    with pytest.raises(ValueError, match="the gradient of 'a' holds NaN or infinity"):
        optimizer.step()
    assert torch.equal(params[0][1], before)
    assert bool((before[:20] != 1).all())
    assert torch.equal(before[20:], torch.ones(20))
