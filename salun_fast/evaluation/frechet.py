"""The Fréchet distance between two sets of images, always with the name of its features.

It is FID only with Inception features; with those of any other network it is a distance of its
own, comparable only to itself (Heusel et al. 2017, section "FID").
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from salun_fast.data import ImageSet
from salun_fast.evaluation.features import FeatureExtractor
from salun_fast.evaluation.picture_check import check_pictures


@dataclass(frozen=True)
class FrechetResult:
    """value: the distance, 0 for equal moments; extractor: the features' name; counts: images in
    the first set (the generated ones) and the second. Few images inflate it: compare results of
    equal counts only."""

    value: float
    extractor: str
    counts: tuple[int, int]
    is_fid: bool

    @property
    def label(self) -> str:
        return "FID" if self.is_fid else f"Fréchet distance, features of {self.extractor}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"label": self.label}


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """Features of real images, taken once and compared with as many generated sets as wanted.

    values: fp32 [n, d]; labels: int64 [n]; image_shape: (c, h, w) of the images.
    """

    extractor: FeatureExtractor
    values: Tensor
    labels: Tensor
    image_shape: tuple[int, ...]

    @staticmethod
    def of(extractor: FeatureExtractor, real: ImageSet) -> RealFeatures:
        """real: images uint8 [n, c, h, w], of the size that the generated ones will have."""
        check_pictures("real images", real.images)
        shape = tuple(real.images.shape[1:])
        return RealFeatures(extractor, extractor(real.images), real.labels.long().cpu(), shape)

    def distance(self, generated: Tensor, classes: Collection[int]) -> FrechetResult:
        """Generated images, uint8 [n, c, h, w], against the real ones of ``classes``."""
        check_pictures("generated images", generated)
        if tuple(generated.shape[1:]) != self.image_shape:
            raise ValueError(
                f"generated images have shape {list(generated.shape[1:])} and the real ones "
                f"{list(self.image_shape)}; bring both to one size before taking features"
            )
        missing = set(classes) - set(self.labels.tolist())
        if missing:
            raise ValueError(
                f"there are no real images of class {', '.join(map(str, sorted(missing)))} to "
                "compare the generated ones with; give real images of every retained class"
            )
        chosen = torch.isin(self.labels, torch.tensor(sorted(classes)))
        return _result(self.extractor, self.extractor(generated), self.values[chosen])


def frechet(first: Tensor, second: Tensor, extractor: FeatureExtractor) -> FrechetResult:
    """The distance between two image sets, uint8 [n, c, h, w] and [m, c, h, w]."""
    return _result(extractor, extractor(first), extractor(second))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """||μ₁ - μ₂||² + tr(S₁ + S₂ - 2 (S₁ S₂)^(1/2)) of two feature sets [n, d] and [m, d].

    fp64 throughout, unbiased covariances. With centred data A = Q R, S = RᵀR / (n - 1), and
    S₁ S₂ has the squared singular values of R₁ R₂ᵀ as its eigenvalues, so that the trace of its
    root is their sum: no root of a covariance is taken, and singular ones lose no digits.
    Raises ValueError for fewer than two rows, another width, or a value that is not finite.
    """
    _check("first", first)
    _check("second", second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"first and second must have the same width, found {first.shape[1]} and "
            f"{second.shape[1]} features; take both with the same extractor"
        )
    mean, factor = _moments(first)
    other_mean, other_factor = _moments(second)
    shift = (mean - other_mean).square().sum()
    spread = factor.square().sum() + other_factor.square().sum()
    overlap = torch.linalg.svdvals(factor @ other_factor.T).sum()
    return max(float(shift + spread - 2.0 * overlap), 0.0)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d] and R [min(n, d), d] with RᵀR the unbiased covariance, fp64."""
    values = features.detach().double().cpu()
    mean = values.mean(dim=0)
    factor = torch.linalg.qr(values - mean, mode="r").R
    return mean, factor / (len(values) - 1) ** 0.5


def _check(name: str, features: Tensor) -> None:
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point features [n, d], found {features.dtype} "
            f"{list(features.shape)}"
        )
    if len(features) < 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name} must hold at least two feature vectors, found {list(features.shape)}: "
            "a covariance needs two; give more images"
        )
    bad = (~features.isfinite()).any(dim=1)
    if bad.any():
        raise ValueError(
            f"{name} must be finite, found NaN or infinity in {int(bad.sum())} of {len(bad)} "
            f"rows, the first at {int(bad.nonzero()[0])}; look for images that are not finite"
        )


def _result(extractor: FeatureExtractor, first: Tensor, second: Tensor) -> FrechetResult:
    return FrechetResult(
        frechet_distance(first, second),
        extractor.name,
        (len(first), len(second)),
        extractor.is_inception,
    )
