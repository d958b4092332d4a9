"""Batches of an in-memory image set by indexing, with shuffling and augmentation per batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_fast.data.images import ImageSet

AUGMENTATIONS = ("none", "crop", "flip_crop")
CROP_PADDING = 4  # zero pixels around the image before a random crop, as for CIFAR


class Batches:
    """Iterates over (images, labels); shuffled anew at every pass when a generator is given.

    images: normalised, channels_last when asked and 4-d; labels: int64 [b]. The last batch may
    be short. ``augment``: "none", "crop" (random crop of the image padded by 4) or "flip_crop"
    (with random horizontal flips).
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: str = "none",
        channels_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment must be one of {AUGMENTATIONS}, found {augment!r}")
        if augment != "none" and (generator is None or data.images.dim() != 4):
            raise ValueError(
                f"augment={augment!r} needs images [n, c, h, w] and a generator; "
                "use augment='none' for other inputs"
            )
        self.data = data
        self.batch_size = batch_size
        self.generator = generator
        self.augment = augment
        self.channels_last = channels_last and data.images.dim() == 4

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in torch.split(self._order(), self.batch_size):
            if len(indices):
                yield self._images(indices), self.data.labels[indices].long()

    def _order(self) -> Tensor:
        count, device = len(self.data), self.data.labels.device
        if self.generator is None:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self.generator).to(device)

    def _images(self, indices: Tensor) -> Tensor:
        images = self.data.raw(indices)
        if self.augment != "none":
            assert self.generator is not None
            images = random_crop(images, self.generator, flip=self.augment == "flip_crop")
        images = self.data.normalise(images)
        if self.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images


def random_crop(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Every image [b, c, h, w] shifted by up to 4 pixels each way, mirrored at random if asked."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4)
    shifts = torch.randint(0, 2 * CROP_PADDING + 1, (2, count), generator=generator)
    rows = shifts[0][:, None] + torch.arange(height)
    columns = shifts[1][:, None] + torch.arange(width)
    if flip:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    device = images.device
    sample = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    rows, columns = rows.to(device), columns.to(device)
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
