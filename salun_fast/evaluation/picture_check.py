"""What counts as pictures outside models: uint8 [n, c, h, w], grey or colour."""

from __future__ import annotations

import torch
from torch import Tensor

_HINT = {
    True: "of images in [-1, 1] take ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)",
    False: "stack the images along a first dimension and give them 1 or 3 channels",
}


def check_pictures(name: str, images: Tensor, *, channels: tuple[int, ...] = (1, 3)) -> None:
    """TypeError or ValueError naming the argument unless ``images`` is uint8 [n >= 1, c, h, w]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a uint8 tensor [n, c, h, w], found {_kind(images)}")
    wanted = f"uint8 [n, {' or '.join(map(str, channels))}, h, w]"
    found = f"{images.dtype} {list(images.shape)}"
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{name} must be {wanted}, found {found}; {_HINT[images.is_floating_point()]}"
        )
    if images.dim() != 4 or images.shape[1] not in channels:
        raise ValueError(f"{name} must be {wanted}, found {found}; {_advice(images, channels)}")
    if images.numel() == 0:
        raise ValueError(f"{name} must be {wanted}, found {found}, which holds no pixel; give some")


def _kind(value: object) -> str:
    return type(value).__name__


def _advice(images: Tensor, channels: tuple[int, ...]) -> str:
    if images.dim() == 4 and images.shape[1] == 1:
        return "repeat grey images: images.repeat(1, 3, 1, 1)"
    if images.dim() == 4 and images.shape[3] in channels:
        return "move the channels forward: images.permute(0, 3, 1, 2)"
    return _HINT[False]
