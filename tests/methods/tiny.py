"""Tiny models and data, so that whole methods run in fractions of a second."""

import torch
from torch import nn

from salun_fast.data import ImageSet


class TinyNet(nn.Module):
    """Convolution, batch norm, dropout and a linear head for [b, 1, 6, 6] images, 4 classes."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.drop(x.flatten(1)))


def blobs(count, seed):
    """Four classes, each bright in its own quarter of the image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = 0.3 * torch.randn(count, 1, 6, 6, generator=generator)
    for index, label in enumerate(labels.tolist()):
        y, x = 3 * (label // 2), 3 * (label % 2)
        images[index, 0, y : y + 3, x : x + 3] += 1.0
    return ImageSet(images, labels)


def same_weights(model, other):
    """Bit-equal state, -0.0 and NaN payloads included."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name]
        .contiguous()
        .flatten()
        .view(torch.uint8)
        .equal(theirs[name].contiguous().flatten().view(torch.uint8))
        for name in ours
    )
