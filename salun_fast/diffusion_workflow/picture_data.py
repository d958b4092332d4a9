"""Pictures as data of a diffusion model: named data sets, and folders of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_fast._extras import need
from salun_fast.data import ImageData, ImageSet, load_images
from salun_fast.diffusion.classes import class_count, sample_shape

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
CHUNK = 4096  # pictures resized at a time, to bound the memory of the floating-point copies


def class_data(name: str, unet: Any, *, root: str | None, download: bool) -> ImageData:
    """A data set, uint8 in the size and channels of a class-conditional UNet.

    Raises ValueError where it has other classes than the UNet, or colour that the UNet lacks.
    """
    channels, height, width = sample_shape(unet)
    data = load_images(name, root=root, download=download, image_size=max(height, width))
    classes = class_count(unet)
    if data.num_classes != classes:
        raise ValueError(
            f"data {name!r} has {data.num_classes} classes and the UNet {classes} "
            f"(num_class_embeds={classes + 1}, the null class included); give the data it was "
            "trained on"
        )
    if data.channels not in (1, channels):
        raise ValueError(
            f"data {name!r} has {data.channels} channels and the UNet takes {channels}; give the "
            "data it was trained on"
        )
    train, test = (_fitted(part, channels, (height, width)) for part in (data.train, data.test))
    return replace(data, train=train, test=test)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [n, c, h, w] to [n, c, *size], averaging where they shrink."""
    if tuple(images.shape[2:]) == size:
        return images
    parts = [
        F.interpolate(part.float(), size=size, mode="bilinear", antialias=True)
        for part in torch.split(images, CHUNK)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def picture_folder(folder: str, role: str, side: int, channels: int) -> Tensor:
    """The pictures of a folder in the order of their names, uint8 [n, channels, side, side].

    They are scaled until they cover the square, and cut to its middle. role: the setting that
    named the folder. Raises FileNotFoundError for a folder without pictures, ValueError naming a
    file that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{role}={folder} is not a folder; give one that holds pictures")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{role}={folder} holds no pictures; put files ending in {', '.join(SUFFIXES)} there"
        )
    return torch.stack(list(_read(files, side, channels)))


def _fitted(part: ImageSet, channels: int, size: tuple[int, int]) -> ImageSet:
    images = resized(part.images, size)
    grey = images.shape[1] == 1
    half = (0.5,) * channels
    return ImageSet(images.repeat(1, channels, 1, 1) if grey else images, part.labels, half, half)


def _read(files: list[Path], side: int, channels: int) -> Iterator[Tensor]:
    pillow, ops = need("PIL.Image", "reading pictures"), need("PIL.ImageOps", "reading pictures")
    mode = "L" if channels == 1 else "RGB"
    for file in files:
        try:
            with pillow.open(file) as opened:
                upright = ops.exif_transpose(opened).convert(mode)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{file} cannot be read as a picture ({error}); mend it or take it out"
            ) from error
        fitted = ops.fit(upright, (side, side), method=pillow.Resampling.LANCZOS)
        flat = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
        yield flat.view(side, side, channels).permute(2, 0, 1).contiguous()
