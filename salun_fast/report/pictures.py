"""Pictures as data URIs for the page, and as files."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from salun_fast import files
from salun_fast._extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

PURPOSE = "pictures in the report"


def data_uri(image: Tensor) -> str:
    """A uint8 image [c, h, w] with one or three channels as ``data:image/png;base64,...``."""
    return png_uri(as_picture(image))


def as_picture(image: Tensor) -> Image:
    """A uint8 image [c, h, w] with one or three channels as Pillow's."""
    pillow = need("PIL.Image", PURPOSE)
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    picture: Image = pillow.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return picture


def png_uri(picture: Image) -> str:
    """A picture as ``data:image/png;base64,...``."""
    return _uri("png", _png(picture))


def gif_uri(path: str | os.PathLike[str]) -> str:
    """A GIF file, as :func:`salun_fast.report.animation.animation` writes it, as
    ``data:image/gif;base64,...``."""
    return _uri("gif", Path(path).read_bytes())


def gif_width(path: str | os.PathLike[str]) -> int:
    """Width of a GIF file in its own pixels."""
    with need("PIL.Image", PURPOSE).open(path) as picture:
        return int(picture.width)


def write_png(picture: Image, path: str | os.PathLike[str]) -> None:
    """Write a picture as a PNG file, in one step."""
    content = _png(picture)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    files.atomic_write(path, write)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
