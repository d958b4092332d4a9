"""Two small classifiers that say what a captioned picture shows, and in which style."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from salun_fast import weights
from salun_fast.data import ImageSet
from salun_fast.demo.captioned import STYLES, CaptionedSet
from salun_fast.evaluation.accuracy import accuracy, outputs
from salun_fast.methods.loop import repeatable
from salun_fast.methods.train import train_classifier

OBJECTS_FILE, STYLES_FILE = "objects.safetensors", "styles.safetensors"
OBJECTS_WIDTH, STYLES_WIDTH = 24, 8  # channels of a judge's first layer
STYLE_PICTURES, STYLE_EPOCHS = 20_000, 2  # styles are told apart much sooner than objects


@dataclass(frozen=True)
class Agreement:
    """In percent: how often object, style and both are what the caption says."""

    objects: float
    styles: float
    both: float


@dataclass(frozen=True, eq=False)
class Judges:
    """objects, styles: classifiers of RGB pictures, fp32 [n, 3, h, w] in 0..1."""

    objects: nn.Module
    styles: nn.Module

    def verdict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What uint8 images [n, 3, h, w] show: object and style indices, int64 [n] each."""
        unknown = torch.zeros(len(images), dtype=torch.int64)
        data = ImageSet(images, unknown)
        return outputs(self.objects, data).predicted, outputs(self.styles, data).predicted

    def agreement(self, pictures: CaptionedSet) -> Agreement:
        """How often the pictures, real or generated, are called what their captions say."""
        things, styles = self.verdict(pictures.images)
        right = (things == pictures.objects) & (styles == pictures.styles)
        return Agreement(
            objects=accuracy(things, pictures.objects),
            styles=accuracy(styles, pictures.styles),
            both=accuracy(right, torch.ones_like(right)),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both into an existing folder."""
        weights.save_weights(self.objects, Path(folder) / OBJECTS_FILE)
        weights.save_weights(self.styles, Path(folder) / STYLES_FILE)


def load_judges(folder: str | os.PathLike[str], num_objects: int) -> Judges:
    """The judges of :meth:`Judges.save`, in eval mode.

    Raises FileNotFoundError, or ValueError where a file is damaged or knows another number of
    objects.
    """
    judges = Judges(build_judge(num_objects, OBJECTS_WIDTH), build_judge(len(STYLES), STYLES_WIDTH))
    weights.load_weights(judges.objects, Path(folder) / OBJECTS_FILE)
    weights.load_weights(judges.styles, Path(folder) / STYLES_FILE)
    judges.objects.eval()
    judges.styles.eval()
    return judges


def train_judges(
    pictures: CaptionedSet, *, epochs: int = 6, seed: int = 0, progress: bool = True
) -> Judges:
    """Judges trained on captioned pictures by the house's ``train_classifier``; repeatable."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    some = pictures.subset(order[:STYLE_PICTURES])
    with repeatable(seed, torch.device("cpu")):
        objects = build_judge(len(pictures.object_words), OBJECTS_WIDTH)
        styles = build_judge(len(STYLES), STYLES_WIDTH)
    data = ImageSet(pictures.images, pictures.objects), ImageSet(some.images, some.styles)
    return Judges(
        _trained(objects, data[0], epochs, seed, progress),
        _trained(styles, data[1], min(epochs, STYLE_EPOCHS), seed, progress),
    )


def build_judge(num_classes: int, width: int) -> nn.Sequential:
    """An untrained judge: four convolutions, the first three halving the side."""
    layers: list[nn.Module] = []
    previous = 3
    for channels, stride in ((width, 2), (2 * width, 2), (4 * width, 2), (4 * width, 1)):
        layers += [
            nn.Conv2d(previous, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        previous = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, num_classes)
    )


def _trained(judge: nn.Module, data: ImageSet, epochs: int, seed: int, progress: bool) -> nn.Module:
    return train_classifier(
        judge,
        data,
        seed=seed,
        progress=progress,
        epochs=epochs,
        lr=0.1,
        batch_size=128,
        schedule="cosine",
        warmup_epochs=0.2,
        augment="crop",
    ).model
