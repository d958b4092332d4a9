"""What a class-conditional ``UNet2DModel`` and its images must be like, checked in words."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from salun_fast.data import ImageSet, as_image_set
from salun_fast.data.images import Images
from salun_fast.diffusion import pixels


def class_count(unet: Any) -> int:
    """C: the number of classes; the embedding after the last of them is the null class."""
    config = getattr(unet, "config", None)
    embeddings = getattr(config, "num_class_embeds", None)
    if embeddings is None:
        raise ValueError(
            f"the UNet must have a class embedding, found {type(unet).__name__} without one; build "
            "UNet2DModel(num_class_embeds=C + 1), whose last embedding is the null class"
        )
    return int(embeddings) - 1


def sample_shape(unet: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the UNet takes."""
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"the UNet must say as many channels as it takes, found out_channels "
            f"{unet.config.out_channels} and in_channels {unet.config.in_channels} (a learned "
            "variance is not supported)"
        )
    size = unet.config.sample_size
    if size is None:
        raise ValueError("the UNet's config has no sample_size; set it to the images' side")
    height, width = (size, size) if isinstance(size, int) else size
    return int(unet.config.in_channels), int(height), int(width)


def check_class(role: str, label: int, classes: int) -> None:
    if isinstance(label, bool) or not isinstance(label, Integral) or not 0 <= label < classes:
        raise ValueError(
            f"{role} must be a class 0..{classes - 1} of this model, found {label!r} (the last "
            f"embedding, {classes}, is the null class)"
        )


def image_set(images: Images, name: str, unet: Any) -> ImageSet:
    """Images with labels that fit the UNet, handed out in [-1, 1]: uint8 ones scaled so, whatever
    mean and std they came with, floating-point ones as their own mean and std make them."""
    given = as_image_set(images, name)
    if not len(given):
        raise ValueError(f"{name} holds no images; give at least one")
    expected = sample_shape(unet)
    if tuple(given.images.shape[1:]) != expected:
        raise ValueError(
            f"{name} images must be [n, {expected[0]}, {expected[1]}, {expected[2]}] for this "
            f"UNet (in_channels, sample_size), found {list(given.images.shape)}; resize or convert "
            "them"
        )
    checked = _symmetric(given, name)
    _check_labels(checked.labels, name, class_count(unet))
    return checked


def _symmetric(given: ImageSet, name: str) -> ImageSet:
    if given.images.dtype == torch.uint8:
        half = (0.5,) * given.images.shape[1]
        return ImageSet(given.images, given.labels, half, half)
    handed_out = given.normalise(given.images) if given.images.is_floating_point() else given.images
    pixels.check_range(handed_out, f"{name} images")
    return ImageSet(handed_out.float(), given.labels)


def _check_labels(labels: Tensor, name: str, classes: int) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if not len(wrong):
        return
    place = int(wrong[0])
    found = int(labels[place])
    if found == classes:
        raise ValueError(
            f"{name}[{place}] has label {found}, which is this UNet's last class embedding: "
            f"num_class_embeds is {classes + 1}, so there are {classes} classes and the null "
            "class. A model without null class cannot be guided: train it with one more embedding"
        )
    raise ValueError(f"{name} labels must lie in 0..{classes - 1}, found {found} at {place}")
