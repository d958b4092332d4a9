"""Captioned pictures: the objects of a grey image set, each in one of four rendered styles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_fast.data import ImageData, ImageSet

SIZE = 32  # side of the rendered pictures in pixels
MARGIN = 2  # black pixels around the picture: Fashion-MNIST's 28 become 32 without resampling

STYLES = {
    "plain": "a photo of {}",
    "inverted": "an inverted photo of {}",
    "outline": "an outline of {}",
    "red": "a red photo of {}",
}
"""The styles in the order of their indices, each with its caption."""

WORDS = {
    "T-shirt/top": "t-shirt", "Trouser": "trousers", "Ankle boot": "boot",
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four",
    "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
}  # fmt: skip
"""Words for class names that would read badly in a caption; other names are used in lower case."""

RED = (1.0, 0.15, 0.15)  # share of the grey value that each channel keeps
OUTLINE_GAIN = 0.3  # a Sobel response of 1 / OUTLINE_GAIN times full white is drawn white
CHUNK = 4096  # pictures rendered at a time, to bound the memory of the floating-point copies


@dataclass(frozen=True, eq=False)
class CaptionedSet:
    """Pictures with what they show and how.

    images: uint8 [n, 3, size, size]; objects, styles: int64 [n], indices into ``object_words``
    and ``STYLES``; prompts: n captions.
    """

    images: Tensor
    objects: Tensor
    styles: Tensor
    object_words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def prompts(self) -> list[str]:
        names = tuple(STYLES)
        pairs = zip(self.objects.tolist(), self.styles.tolist(), strict=True)
        return [prompt(self.object_words[thing], names[style]) for thing, style in pairs]

    def subset(self, indices: Tensor) -> CaptionedSet:
        """A copy of these pictures; indices: int64 [m]."""
        return CaptionedSet(
            self.images[indices], self.objects[indices], self.styles[indices], self.object_words
        )


def captioned(data: ImageData, *, part: str = "train", size: int = SIZE) -> CaptionedSet:
    """The grey pictures of ``data``, each rendered in one style, as RGB of ``size`` x ``size``.

    part: "train" or "test". Within each class the styles take turns, so that every pair of object
    and style is equally frequent; the same data always give the same set.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', found {part!r}")
    if data.channels != 1:
        raise ValueError(
            f"data must be grey images (1 channel), found {data.channels} channels in "
            f"{data.name!r}; load it without channels=3"
        )
    if size <= 2 * MARGIN:
        raise ValueError(f"size must be more than {2 * MARGIN} pixels, found {size}")
    images: ImageSet = getattr(data, part)
    styles = _turns(images.labels, data.num_classes)
    pictures = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(images), CHUNK):
        here = slice(start, start + CHUNK)
        pictures[here] = render(images.images[here], styles[here], size=size)
    return CaptionedSet(pictures, images.labels.long(), styles, object_words(data.classes))


def object_words(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The word for each class name, as captions use it."""
    return tuple(WORDS.get(name, name.lower()) for name in classes)


def prompt(word: str, style: str = "plain") -> str:
    """The caption of an object in a style: ``prompt("sneaker", "red")`` is
    "a red photo of a sneaker"."""
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, found {style!r}")
    return STYLES[style].format(_with_article(word))


def _with_article(word: str) -> str:
    if word == "trousers":  # the one plural
        return word
    return f"an {word}" if word[0] in "aeiou" and word != "one" else f"a {word}"


def _turns(labels: Tensor, num_classes: int) -> Tensor:
    """int64 [n]: the k-th picture of each class gets style k mod the number of styles."""
    styles = torch.empty(len(labels), dtype=torch.int64)
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        styles[members] = torch.arange(len(members)) % len(STYLES)
    return styles


def render(grey: Tensor, styles: Tensor, *, size: int = SIZE) -> Tensor:
    """Grey uint8 [n, 1, h, w] as RGB uint8 [n, 3, size, size], picture i in ``styles[i]``."""
    inner = size - 2 * MARGIN
    values = grey.float() / 255.0
    if values.shape[-2:] != (inner, inner):
        values = F.interpolate(values, (inner, inner), mode="bicubic", antialias=True).clamp(0, 1)
    values = F.pad(values, (MARGIN,) * 4)
    drawn = torch.empty(len(styles), 3, size, size)
    for index, draw in enumerate(_DRAW.values()):
        drawn[styles == index] = draw(values[styles == index])
    return drawn.mul_(255.0).round_().to(torch.uint8)


def _plain(values: Tensor) -> Tensor:
    return values.expand(-1, 3, -1, -1)


def _inverted(values: Tensor) -> Tensor:
    return _plain(1.0 - values)


def _outline(values: Tensor) -> Tensor:
    """White where the grey value changes: the magnitude of Sobel's gradient."""
    sobel = torch.tensor([[1.0, 2.0, 1.0]]).T @ torch.tensor([[-1.0, 0.0, 1.0]])
    slopes = F.conv2d(values, torch.stack([sobel, sobel.T])[:, None], padding=1)
    return _plain((slopes.norm(dim=1, keepdim=True) * OUTLINE_GAIN).clamp(0, 1))


def _red(values: Tensor) -> Tensor:
    return values * torch.tensor(RED).view(1, 3, 1, 1)


_DRAW = {"plain": _plain, "inverted": _inverted, "outline": _outline, "red": _red}
