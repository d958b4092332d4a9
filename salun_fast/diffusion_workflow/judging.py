"""The classifier of a run folder as the judge of what a diffusion model generates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast import workflow
from salun_fast.config import RunConfig
from salun_fast.data import ImageData
from salun_fast.evaluation.features import inception_features
from salun_fast.evaluation.frechet import RealFeatures
from salun_fast.evaluation.generated import Judge
from salun_fast.run import RunFolder

REAL_IMAGES = 10_000  # of the training part at most; their features are taken once


def judge_of(run: str, data: ImageData, *, device: str) -> Judge:
    """The classifier that ``salun-fast train`` left in ``run``, for images of ``data``'s size.

    They are resized to what it was trained on; so are the test images on which its accuracy is
    measured. Raises ValueError where it knows other classes.
    """
    folder = RunFolder(run)
    config = replace(folder.config(), device=device, threads=None)
    if not folder.model_file.is_file():
        raise FileNotFoundError(
            f"judge={run} holds no {folder.model_file.name}; give a finished run folder of "
            "salun-fast train"
        )
    config = replace(config, weights=str(folder.model_file))
    known = workflow.load_data(config)
    if known.classes != data.classes:
        raise ValueError(
            f"judge={run} was trained on {known.name!r} with the classes {_some(known)}, the "
            f"diffusion model draws {data.name!r} with {_some(data)}; give a judge of that data"
        )
    channels, size = int(known.train.images.shape[1]), tuple(known.train.images.shape[2:])
    model = _Adapted(workflow.build_model(config, known), channels, size).eval()
    mean, std = (_spread(v, data.channels) for v in (known.train.mean, known.train.std))
    test = replace(data.test, mean=mean, std=std)
    return Judge.measured(model, _name(config, run), test)


def real_features(
    judge: Judge, data: ImageData, *, seed: int, inception: str | None, device: str
) -> RealFeatures:
    """Features of real images, to which generated ones are compared: the judge's, or Inception's
    where its weights are given, and only then is the distance called FID."""
    extractor = judge.features()
    if inception is not None:
        extractor = inception_features(inception, device=device)
    return RealFeatures.of(extractor, data.train.head(REAL_IMAGES, seed=seed))


class _Adapted(nn.Module):
    """A classifier behind a change of size and channels."""

    def __init__(self, classifier: nn.Module, channels: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.classifier, self.channels, self.size = classifier, channels, size

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            grey = images.mean(dim=1, keepdim=True)
            images = grey.expand(-1, self.channels, -1, -1)
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.classifier(images)
        return logits


def _spread(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    """Statistics per channel for another number of channels: those of grey images."""
    if values is None or len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels


def _name(config: RunConfig, run: str) -> str:
    return f"{config.model} of {Path(run).name}"


def _some(data: ImageData) -> str:
    shown = ", ".join(data.classes[:4])
    return shown + (", ..." if data.num_classes > 4 else "")
