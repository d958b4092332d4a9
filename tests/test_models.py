"""Models by name."""

import pytest
import torch
from torch import nn

from salun_fast import models


def weights(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet18_has_the_papers_number_of_weights():
    assert weights(models.build("resnet18", 10)) == 11_173_962


def test_full_width_is_the_default():
    assert weights(models.build("resnet18", 10, width=64)) == 11_173_962
    assert weights(models.build("vgg16_bn", 10)) == weights(models.build("vgg16_bn", 10, width=64))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
@pytest.mark.parametrize("size", [8, 28, 32])
def test_built_in_models_take_small_images_of_any_size(name, size):
    model = models.build(name, 7, width=4, in_channels=1).eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_width_is_a_factor_or_a_number_of_channels():
    by_factor, by_count = (models.build("resnet18", 10, width=w) for w in (0.125, 8))
    assert weights(by_factor) == weights(by_count)
    for wrong in (8.5, 2, 1.0, 0, -1):
        with pytest.raises(ValueError, match="whole number of channels"):
            models.build("resnet18", 10, width=wrong)


def test_torchvision_models_by_name():
    pytest.importorskip("torchvision")
    assert models.build("squeezenet1_1", 5)(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match="load grey images with channels=3"):
        models.build("squeezenet1_1", 5, in_channels=1)
    with pytest.raises(ValueError, match="width is only known to"):
        models.build("squeezenet1_1", 5, width=0.5)
    with pytest.raises(ValueError, match="resnet"):
        models.build("resnet19", 5)


def test_own_models_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "my_models_for_test.py").write_text(
        "from torch import nn\n"
        "def net(num_classes): return nn.Linear(4, num_classes)\n"
        "def text(): return 'no model'\n"
        "def wide(num_classes, width=7): return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = models.build("my_models_for_test:net", 3)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 3
    assert models.build("my_models_for_test:wide", 3).in_features == 7
    assert models.build("my_models_for_test:wide", 3, width=5).in_features == 5
    with pytest.raises(TypeError, match=r"must return a torch\.nn\.Module"):
        models.build("my_models_for_test:text", 3)
    with pytest.raises(ValueError, match="cannot be loaded"):
        models.build("my_models_for_test:missing", 3)
