"""The freeze certificate."""

import copy

import pytest
import torch
from torch import nn

from salun_fast.evaluation import FreezeCertificate
from salun_fast.mask import SaliencyMask


def model_and_mask(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to(dtype)
    masks = {n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters()}
    return model, SaliencyMask.from_dict(masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_changing_only_selected_weights_is_certified(dtype):
    model, mask = model_and_mask(dtype)
    before = FreezeCertificate.before(model, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[mask[name]] += 1.0
    certificate = before.after(model)
    assert certificate.holds
    assert (certificate.frozen, certificate.changed) == (mask.numel - mask.count, 0)
    assert certificate.digest_before == certificate.digest_after
    assert len(certificate.digest_after) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_frozen_weight_breaks_it(dtype):
    model, mask = model_and_mask(dtype)
    before = FreezeCertificate.before(model, mask)
    with torch.no_grad():
        weight = model[0].weight
        index = tuple((~mask["0.weight"]).nonzero()[0])
        weight[index] += 1.0
    certificate = before.after(model)
    assert not certificate.holds
    assert certificate.changed == 1
    assert certificate.digest_before != certificate.digest_after


def test_bits_count_where_values_are_equal():
    model, mask = model_and_mask()
    index = tuple((~mask["0.weight"]).nonzero()[0])
    with torch.no_grad():
        model[0].weight[index] = 0.0
    before = FreezeCertificate.before(model, mask)
    with torch.no_grad():
        model[0].weight[index] = -0.0
    assert before.after(model).changed == 1


def test_memory_format_does_not_matter():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    mask = SaliencyMask.from_dict(
        {n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters()}
    )
    before = FreezeCertificate.before(model, mask)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert before.after(other).holds


def test_another_dtype_cannot_be_certified():
    model, mask = model_and_mask()
    before = FreezeCertificate.before(model, mask)
    with pytest.raises(ValueError, match="certify the model in the dtype it started with"):
        before.after(model.half())


def test_a11_a_mask_with_the_prefix_of_a_wrapper_certifies_too():
    model, mask = model_and_mask()
    wrapped = SaliencyMask.from_dict({f"module.{n}": mask[n] for n in mask.names})
    certificate = FreezeCertificate.before(model, wrapped).after(model)
    assert certificate.holds
    assert certificate.frozen == mask.numel - mask.count
