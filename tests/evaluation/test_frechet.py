"""The Fréchet distance against closed forms, peers and bad input; where its features come from."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from salun_fast import models
from salun_fast.data import ImageSet
from salun_fast.evaluation.features import (
    FeatureExtractor,
    classifier_features,
    inception_features,
)
from salun_fast.evaluation.frechet import RealFeatures, frechet, frechet_distance


def exact(mean, deviations):
    """2 d rows whose sample mean and unbiased covariance are exactly these, diagonal."""
    mean, deviations = (torch.tensor(v, dtype=torch.float64) for v in (mean, deviations))
    reach = torch.diag(deviations) * ((2 * len(mean) - 1) / 2) ** 0.5
    return mean + torch.cat([reach, -reach])


def noise(rows, columns, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=dtype)
    return torch.randn(rows, columns, generator=generator, dtype=dtype) @ mixing + seed


def pictures(count, seed=0, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


# --- the number -----------------------------------------------------------------------------------


def test_gaussians_with_diagonal_covariance_have_the_closed_form():
    first, second = exact([0.0, 1.0, -2.0], [1.0, 2.0, 0.5]), exact([3.0, 1.0, 2.0], [2.0, 0.25, 4])
    means = 9.0 + 0.0 + 16.0
    spreads = (1 - 2) ** 2 + (2 - 0.25) ** 2 + (0.5 - 4) ** 2
    assert frechet_distance(first, second) == pytest.approx(means + spreads, rel=1e-12)


def test_singular_covariances_lose_no_digits():
    first, second = exact([0.0, 0.0, 0.0], [1.0, 0.0, 3e-9]), exact([0.0, 0.0, 1.0], [0.0, 0.0, 1])
    assert frechet_distance(first, second) == pytest.approx(1 + 1 + (1 - 3e-9) ** 2, rel=1e-14)
    constant = torch.zeros(4, 3), torch.full((5, 3), 2.0)
    assert frechet_distance(*constant) == 12.0


@pytest.mark.parametrize(("rows", "other_rows"), [(200, 150), (9, 7)])
def test_scipys_matrix_root_gives_the_same_number_with_more_images_than_features_or_fewer(
    rows, other_rows
):
    linalg = pytest.importorskip("scipy.linalg")
    first, second = noise(rows, 12), noise(other_rows, 12, seed=1)
    root = linalg.sqrtm((first.T.cov() @ second.T.cov()).numpy()).real.trace()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    expected = float(shift + first.T.cov().trace() + second.T.cov().trace()) - 2 * root
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_it_is_symmetric_and_zero_between_equal_sets():
    first, second = noise(60, 20, dtype=torch.float32), noise(50, 20, seed=3, dtype=torch.float32)
    assert frechet_distance(first, second) == pytest.approx(
        frechet_distance(second, first), rel=1e-12
    )
    spread = float(first.double().var(dim=0).sum())
    assert 0.0 <= frechet_distance(first, first) < 1e-12 * spread
    assert 0.0 <= frechet_distance(first, first.flip(0)) < 1e-12 * spread


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (noise(1, 4), noise(5, 4), "first must hold at least two .* give more images"),
        (noise(5, 4), noise(0, 4), "second must hold at least two"),
        (noise(5, 4), noise(5, 3), "same width, found 4 and 3 features"),
        (noise(5, 4), noise(5, 4).flatten(), "second must be floating-point features \\[n, d\\]"),
        (torch.ones(5, 4).long(), noise(5, 4), "first must be floating-point features"),
    ],
)
def test_sets_that_have_no_distance_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_names_the_set_and_the_row(value):
    second = noise(5, 4)
    second[3, 1] = value
    with pytest.raises(ValueError, match="second must be finite.* 1 of 5 rows, the first at 3"):
        frechet_distance(noise(5, 4), second)


# --- the features ---------------------------------------------------------------------------------


class Late(nn.Module):
    """Its head is registered before the layer that feeds it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.body = nn.Linear(64, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.head(self.norm(self.body(x.flatten(1))))


def test_features_enter_the_linear_layer_that_is_called_last():
    model, images = Late().train(), pictures(700)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = classifier_features(model, "late", mean=[0.5], std=[0.25])(images)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    model.eval()
    with torch.no_grad():
        inputs = ((images.float() / 255 - 0.5) / 0.25).flatten(1)
        expected = model.norm(model.body(inputs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def test_a_model_without_a_usable_linear_layer_is_refused():
    with pytest.raises(ValueError, match="'conv' must have an nn.Linear.*Sequential"):
        classifier_features(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "conv")
    per_pixel = nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.Flatten())
    with pytest.raises(ValueError, match="its input is \\[5, 1, 64\\]"):
        classifier_features(per_pixel, "pixels")(pictures(5))


def test_images_that_are_not_uint8_are_refused_with_the_conversion():
    extractor = classifier_features(Late(), "late")
    with pytest.raises(TypeError, match="images must be uint8 .*127.5"):
        extractor(torch.rand(4, 1, 8, 8) * 2 - 1)
    with pytest.raises(ValueError, match="permute\\(0, 3, 1, 2\\)"):
        extractor(pictures(4, shape=(8, 8, 3)))


def test_the_distance_is_called_fid_only_with_inception_features():
    extractor = classifier_features(Late(), "small CNN")
    result = frechet(pictures(40), pictures(30, seed=1), extractor)
    assert result.label == "Fréchet distance, features of small CNN"
    assert (result.counts, result.is_fid) == ((40, 30), False)
    named = FeatureExtractor("small CNN", extractor.model, is_inception=True)
    assert frechet(pictures(40), pictures(30, seed=1), named).label == "FID"
    assert result.as_dict()["label"] == result.label


def test_real_features_are_compared_class_by_class():
    model = models.build("resnet18", 3, width=4, in_channels=1)
    images, labels = pictures(60), torch.arange(60) % 3
    real = RealFeatures.of(classifier_features(model, "net"), ImageSet(images, labels))
    retained = labels != 1
    again = real.distance(images[retained], [0, 2])
    assert again.value == pytest.approx(0.0, abs=1e-9)
    assert again.counts == (40, 40)
    assert real.distance(images[~retained], [0, 2]).value > again.value
    with pytest.raises(ValueError, match="no real images of class 7"):
        real.distance(images, [0, 7])
    with pytest.raises(ValueError, match="\\[1, 6, 6\\] and the real ones \\[1, 8, 8\\]"):
        real.distance(pictures(5, shape=(1, 6, 6)), [0])


# --- Inception ------------------------------------------------------------------------------------


def test_inception_weights_come_from_a_file_only(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights_path .* not downloaded"):
        inception_features(tmp_path / "absent.pth")


def test_weights_of_another_network_are_not_called_inception(tmp_path):
    pytest.importorskip("torchvision")
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match="must hold torchvision's inception_v3"):
        inception_features(path)


def test_inception_features_are_the_last_pooling_of_any_image_size(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False).eval()
    path = tmp_path / "inception.pth"
    torch.save(network.state_dict(), path)
    extractor = inception_features(path)
    images = pictures(2, shape=(3, 299, 299))
    found = extractor(images)
    assert found.shape == (2, 2048)
    assert extractor.is_inception
    network.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(found, network(images.float() / 127.5 - 1))
    assert extractor(pictures(2, shape=(1, 16, 16))).shape == (2, 2048)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, salun_fast.evaluation.generated, salun_fast.evaluation.clip_score, "
        "salun_fast.report.grid, salun_fast.report.animation; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=120, env=os.environ,
    )  # fmt: skip
    found = {name.partition(".")[0] for name in done.stdout.split()}
    assert found.isdisjoint({"torchvision", "transformers", "PIL", "matplotlib", "sklearn"})
