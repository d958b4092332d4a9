"""The models whose numbers of weights the benchmarks have."""

from __future__ import annotations

import torch

from benchmarks.case import Size
from salun_fast import models


def _resnet18() -> Size:
    with torch.device("meta"):
        counts = tuple(param.numel() for param in models.build("resnet18", 10).parameters())
    return Size(sum(counts), len(counts), counts=counts, name="ResNet-18")


RESNET18 = _resnet18()
DDPM = Size(35_746_307, 328, name="DDPM UNet")  # google/ddpm-cifar10-32
SD = Size(859_520_964, 686, name="SD UNet")  # Stable Diffusion 1
