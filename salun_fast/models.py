"""Image classifiers by name: ResNet-18 with the CIFAR stem, VGG-16-BN, torchvision's, your own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

FULL_WIDTH = 64  # channels of the first stage
LEAST_CHANNELS = 4  # fewer are taken for a mistyped factor


def build(
    name: str, num_classes: int, *, width: float | None = None, in_channels: int = 3
) -> nn.Module:
    """A freshly initialised classifier.

    name: "resnet18" (3 x 3 CIFAR stem, no pooling after it; 11,173,962 weights for 10 classes),
        "vgg16_bn" (one linear layer as its head), any torchvision classifier by name, or
        "module:function", called with those of num_classes, width, in_channels that it takes.
    width: of the two built-in models: channels of the first stage, 64 in the papers; a number
        below 1 is a factor of that (0.125 is 8 channels). None: 64, or what the function takes
        by default; torchvision's models have no other.
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(
            f"num_classes and in_channels must be at least 1, found {num_classes} and {in_channels}"
        )
    if ":" in name:
        given = {} if width is None else {"width": width}
        return _from_function(
            name, {"num_classes": num_classes, "in_channels": in_channels} | given
        )
    if name in BUILT_IN:
        channels = _base_channels(FULL_WIDTH if width is None else width)
        return BUILT_IN[name](num_classes, channels, in_channels)
    if width not in (None, FULL_WIDTH):
        raise ValueError(
            f"width is only known to {', '.join(BUILT_IN)}; for model {name!r} leave it out, "
            f"found {width:g}"
        )
    return _from_torchvision(name, num_classes, in_channels)


def _base_channels(width: float) -> int:
    channels = round(FULL_WIDTH * width) if width < 1 else width
    if channels < LEAST_CHANNELS or channels != int(channels):
        raise ValueError(
            f"width must be the whole number of channels of the first stage, from "
            f"{LEAST_CHANNELS} on ({FULL_WIDTH} is the papers'), or a factor below 1, found {width}"
        )
    return int(channels)


class ResNet(nn.Module):
    """ResNet-18 for small images (He et al. 2015): four stages of two basic blocks.

    Input [b, in_channels, h, w], output logits [b, num_classes].
    """

    def __init__(self, num_classes: int, channels: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        widths = [channels, 2 * channels, 4 * channels, 8 * channels]
        stages = []
        previous = channels
        for index, wide in enumerate(widths):
            stride = 1 if index == 0 else 2
            stages.append(nn.Sequential(BasicBlock(previous, wide, stride), BasicBlock(wide, wide)))
            previous = wide
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += shortcut
        return F.relu(y, inplace=True)


VGG16 = (1, 1, "pool", 2, 2, "pool", 4, 4, 4, "pool", 8, 8, 8, "pool", 8, 8, 8, "pool")


def _vgg16_bn(num_classes: int, channels: int, in_channels: int) -> nn.Module:
    """VGG-16 with batch norm (Simonyan & Zisserman 2014, D), for small images.

    Poolings round up, so that images of any size keep at least one pixel.
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for entry in VGG16:
        if entry == "pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        wide = int(entry) * channels
        layers += [nn.Conv2d(previous, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)]
        layers.append(nn.ReLU(inplace=True))
        previous = wide
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, num_classes)]
    return nn.Sequential(*layers, *head)


BUILT_IN: dict[str, Callable[[int, int, int], nn.Module]] = {
    "resnet18": ResNet,
    "vgg16_bn": _vgg16_bn,
}


def _from_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(
            f"model {name!r} comes from torchvision: pip install 'salun-fast[eval]'"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(
            f"model {name!r} is not one of {', '.join(BUILT_IN)}, not a torchvision classifier "
            "and not written as module:function; torchvision knows e.g. "
            f"{', '.join(_similar(name, known))}"
        )
    if in_channels != 3:
        raise ValueError(
            f"torchvision's {name} takes 3 channels, found {in_channels}; load grey images with "
            "channels=3"
        )
    model: nn.Module = models.get_model(name, num_classes=num_classes)
    return model


def _similar(name: str, known: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, known, n=4, cutoff=0.0)


def _from_function(path: str, arguments: dict[str, Any]) -> nn.Module:
    """The user's model; their working folder is importable, as with ``python -m``."""
    module_name, _, function_name = path.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model {path!r} cannot be loaded: {error}; write module:function, importable from "
            "the working folder"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    taken = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        arguments = {key: value for key, value in arguments.items() if key in taken}
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {path!r} must return a torch.nn.Module, found {type(model)}")
    return model
