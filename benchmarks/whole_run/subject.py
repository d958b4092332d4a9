"""What both sides work on: the model, its data, the order of the batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast import models
from salun_fast.data import ImageSet, load_images
from salun_fast.methods import ClassifierSettings, train_classifier
from salun_fast.methods.random_label import random_label_plan
from salun_fast.methods.settings import resolve
from salun_fast.weights import load_weights, save_weights

SIDE = 32  # pixels, as the papers' images
PRESET = "reference"


@dataclass(frozen=True)
class Settings:
    """folder: for weights and masks. forget, retain, judged: images. rounds: steps timed of each
    variant, after one that is not."""

    folder: Path
    data: str = "fashion-mnist"
    root: str | None = None
    width: int = 64
    forget: int = 512
    retain: int = 1536
    judged: int = 512
    batch_size: int = 256
    density: float = 0.5
    lr: float = 0.013
    training_epochs: int = 2
    rounds: int = 3
    compiled: bool = True
    threads: int = 2
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(-(-part // self.batch_size) for part in (self.forget, self.retain))

    def weights(self, way: str) -> Path:
        return self.folder / f"{way}.safetensors"

    def masks(self, way: str) -> Path:
        folder = self.folder / f"{way} masks"
        folder.mkdir(exist_ok=True)
        return folder


QUICK: dict[str, Any] = {
    "data": "digits", "width": 8, "forget": 32, "retain": 48, "judged": 32, "batch_size": 32,
    "training_epochs": 1, "rounds": 1, "compiled": False,
}  # fmt: skip


class Task(NamedTuple):
    forget: ImageSet
    retain: ImageSet
    test: ImageSet


def task(settings: Settings) -> Task:
    """The first images of a shuffle; ``judged`` of the test images."""
    data = load_images(settings.data, root=settings.root)
    chosen = _sized(data.train.head(settings.forget + settings.retain, seed=settings.seed))
    order = torch.arange(len(chosen))
    return Task(
        chosen.subset(order[: settings.forget]),
        chosen.subset(order[settings.forget :]),
        _sized(data.test.head(settings.judged, seed=settings.seed)),
    )


def _sized(data: ImageSet) -> ImageSet:
    """Pixels repeated as often as they fit into 32 x 32, black around them."""
    times, rest = divmod(SIDE, data.images.shape[-1])
    larger = data.images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    edge = (rest // 2, rest - rest // 2)
    return replace(data, images=F.pad(larger, edge * 2))


def train(settings: Settings) -> None:
    """A model that knows the images, in the file of the way "original"."""
    torch.set_num_threads(settings.threads)
    images = task(settings)
    data = replace(
        images.forget,
        images=torch.cat([images.forget.images, images.retain.images]),
        labels=torch.cat([images.forget.labels, images.retain.labels]),
    )
    result = train_classifier(
        _fresh(settings),
        data,
        epochs=settings.training_epochs,
        lr=0.05,
        batch_size=settings.batch_size,
        precision="bf16",
        readout_images=0,
        progress=False,
    )
    save_weights(result.model, settings.weights("original"))


def model(settings: Settings, way: str = "original") -> nn.Module:
    found = _fresh(settings)
    load_weights(found, settings.weights(way))
    return found


def _fresh(settings: Settings) -> nn.Module:
    torch.manual_seed(settings.seed)
    return models.build("resnet18", 10, width=settings.width, in_channels=1)


def method(settings: Settings, **changes: Any) -> ClassifierSettings:
    """SalUn as its authors' code has it, one epoch."""
    own = {"epochs": 1, "readout_images": 0}
    shared = {name: getattr(settings, name) for name in ("lr", "batch_size", "density")}
    return resolve("salun", PRESET, own | shared | changes)


def batches(settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of one epoch that ``unlearn_classifier`` goes through, in torch's
    usual layout."""
    images = task(settings)
    chosen = method(settings, channels_last=False)
    plan = random_label_plan(images.forget, images.retain, chosen, 10)
    yield from plan.batches(torch.Generator().manual_seed(settings.seed))
