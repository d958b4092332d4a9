"""A labelled image set held in memory, and the conversion of what users pass into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

Images: TypeAlias = (
    "ImageSet | Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]"  # what callers may pass
)


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Inputs and labels as two tensors, normalised when they are handed out.

    images: [n, c, h, w] uint8 in 0..255, or floating point of any shape [n, ...] as the model
        takes it.
    labels: [n] int64.
    mean, std: per channel, in units of 0..1; ``(x / 255 - mean) / std`` for uint8 images,
        ``(x - mean) / std`` for floating-point ones; None leaves the values as they are.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"images and labels must be equally many, found {len(self.images)} images and "
                f"{len(self.labels)} labels"
            )
        if self.labels.dim() != 1 or self.labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "labels must be one integer class per image (int64 [n]), found "
                f"{self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch(torch.tensor([index]))
        return images[0], int(labels[0])

    def raw(self, indices: Tensor) -> Tensor:
        """The stored images of these indices, not normalised."""
        return self.images[indices]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and int64 labels of these indices."""
        return self.normalise(self.raw(indices)), self.labels[indices].long()

    def normalise(self, images: Tensor) -> Tensor:
        """Stored values to what the model takes: floating point, mean and std applied."""
        if images.dtype == torch.uint8:
            images = images.float().div_(255.0)
        if self.mean is None or self.std is None:
            return images
        shape = (1, -1) + (1,) * (images.dim() - 2)
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device).view(shape)
            for v in (self.mean, self.std)
        )
        return (images - mean) / std

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """A copy of these images and labels."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def head(self, count: int, *, seed: int) -> ImageSet:
        """At most ``count`` images, drawn without replacement; all of them if there are fewer."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count])

    def to(self, device: torch.device) -> ImageSet:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set as loaded: its name, train and test part, class names."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def as_image_set(data: Images, name: str = "data") -> ImageSet:
    """Any of the accepted forms as an ImageSet; datasets and loaders are read once into memory.

    Of a loader whose sampler chooses among the images, one pass of that sampler is taken.

    A dataset's own random transforms are therefore drawn once; ``augment=`` of the training
    settings augments per batch instead. Raises TypeError naming the argument for anything else.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, Subset) and isinstance(data.dataset, ImageSet):
        return data.dataset.subset(torch.as_tensor(data.indices))
    if isinstance(data, DataLoader):
        return as_image_set(_drawn(data), name)
    if isinstance(data, (tuple, list)):
        return _from_pair(data, name)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _from_dataset(data, name)
    raise TypeError(
        f"{name} must be a map-style Dataset, a DataLoader over one, an ImageSet or a pair "
        f"(images, labels) of tensors, found {type(data).__name__}"
    )


def _drawn(loader: DataLoader[Any]) -> Dataset[Any]:
    """The dataset behind a loader, or the part of it that its sampler draws."""
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset  # refused by the caller
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return Subset(loader.dataset, [i for batch in loader.batch_sampler for i in batch])
    if type(loader.sampler) in (SequentialSampler, RandomSampler):
        return loader.dataset
    return Subset(loader.dataset, list(loader.sampler))


def _from_pair(data: Sequence[Any], name: str) -> ImageSet:
    if len(data) != 2:
        raise TypeError(f"{name} must be a pair (images, labels), found {len(data)} items")
    images, labels = (torch.as_tensor(part) for part in data)
    if labels.dtype in (torch.uint8, torch.int16, torch.int8):
        labels = labels.long()
    return ImageSet(images, labels)


def _from_dataset(data: Any, name: str) -> ImageSet:
    if len(data) == 0:
        return ImageSet(torch.empty(0), torch.empty(0, dtype=torch.int64))
    images, labels = [], []
    for index in range(len(data)):
        image, label = data[index]
        if not isinstance(image, Tensor):
            raise TypeError(
                f"{name}[{index}] must be a tensor and a label, found {type(image).__name__}; "
                "give the dataset a transform that ends in ToTensor()"
            )
        images.append(image)
        labels.append(int(label))
    return ImageSet(torch.stack(images), torch.tensor(labels))
