"""Has the generator forgotten: what an independent classifier calls the images it makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast.data import ImageSet
from salun_fast.evaluation.accuracy import accuracy, outputs
from salun_fast.evaluation.features import FeatureExtractor, classifier_features
from salun_fast.evaluation.frechet import FrechetResult, RealFeatures
from salun_fast.evaluation.picture_check import check_pictures


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier that had no part in the unlearning, and how good it is itself.

    name: as reported; test_accuracy: percent, on real images; classes: those it was tested on;
    image_shape: (c, h, w) it takes; mean, std: per channel in units of 0..1.
    """

    model: nn.Module
    name: str
    test_accuracy: float
    classes: tuple[int, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @staticmethod
    def measured(model: nn.Module, name: str, test: ImageSet) -> Judge:
        """test: real images the classifier was not trained on, uint8, normalised as it wants."""
        check_pictures("test images", test.images)
        said = outputs(model, test)
        classes = tuple(sorted(set(said.labels.tolist())))
        shape = tuple(test.images.shape[1:])
        return Judge(model, name, said.accuracy, classes, shape, test.mean, test.std)

    def predict(self, images: Tensor) -> Tensor:
        """The class of each image, uint8 [n, c, h, w] to int64 [n] on the CPU."""
        self.check("images", images)
        unasked = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return outputs(self.model, ImageSet(images, unasked, self.mean, self.std)).predicted

    def features(self) -> FeatureExtractor:
        """What the judge sees before it decides, for the Fréchet distance."""
        return classifier_features(self.model, self.name, mean=self.mean, std=self.std)

    def check(self, name: str, images: Tensor) -> None:
        check_pictures(name, images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"{name} have shape {list(images.shape[1:])} and the judge {self.name!r} was "
                f"tested on {list(self.image_shape)}; resize them or train a judge of that size"
            )


@dataclass(frozen=True)
class GeneratedMetrics:
    """Percent, by the judge. Its own errors are in every number: see ``judge_accuracy``.

    ua: images generated for the forgotten class that are *not* called so. ra: images generated for
    the other classes that are called as asked. per_class: class to percent called as asked, the
    forgotten one included (100 - ua). frechet: of the retained classes' images to real ones.
    counts: images "forget" and "retained".
    """

    ua: float
    ra: float
    per_class: dict[int, float]
    frechet: FrechetResult | None
    judge: str
    judge_accuracy: float
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Values that JSON takes."""
        distance = None if self.frechet is None else self.frechet.as_dict()
        return asdict(self) | {"frechet": distance}


def evaluate_generated(
    judge: Judge,
    *,
    forget_images: Tensor,
    forget_class: int,
    retained_images: Tensor,
    retained_labels: Tensor,
    real: RealFeatures | None = None,
) -> GeneratedMetrics:
    """Judge what a generator made, after unlearning or before.

    forget_images: uint8 [n, c, h, w], asked to show ``forget_class``. retained_images: uint8
    [m, c, h, w], asked to show ``retained_labels`` (integers [m], none of them forget_class).
    real: features of real images; those of the classes in ``retained_labels`` are compared with
    retained_images. None leaves the distance out.
    """
    judge.check("forget_images", forget_images)
    judge.check("retained_images", retained_images)
    labels = _retained(judge, forget_class, retained_images, retained_labels)
    kept = sorted(set(labels.tolist()))
    distance = None if real is None else real.distance(retained_images, kept)
    forgotten = _share(judge.predict(forget_images), forget_class)
    said = judge.predict(retained_images)
    shares = {c: _share(said[labels == c], c) for c in kept}
    return GeneratedMetrics(
        ua=100.0 - forgotten,
        ra=accuracy(said, labels),
        per_class=dict(sorted((shares | {forget_class: forgotten}).items())),
        frechet=distance,
        judge=judge.name,
        judge_accuracy=judge.test_accuracy,
        counts={"forget": len(forget_images), "retained": len(retained_images)},
    )


def _share(said: Tensor, asked: int) -> float:
    return accuracy(said, torch.full_like(said, asked))


def _retained(judge: Judge, forget_class: int, images: Tensor, labels: Tensor) -> Tensor:
    """The labels as int64 on the CPU, once they are known to fit."""
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"retained_labels must be one integer class per retained image ([{len(images)}]), "
            f"found {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.long().cpu()
    unknown = {forget_class, *labels.tolist()} - set(judge.classes)
    if unknown:
        raise ValueError(
            f"class {', '.join(map(str, sorted(unknown)))} was asked for, but the judge "
            f"{judge.name!r} was tested on classes {', '.join(map(str, judge.classes))}; check "
            "forget_class and retained_labels, or give a judge that knows the class"
        )
    if bool((labels == forget_class).any()):
        raise ValueError(
            f"retained_labels must not hold forget_class {forget_class}, found it at index "
            f"{int((labels == forget_class).nonzero()[0])}; pass those images as forget_images"
        )
    return labels
