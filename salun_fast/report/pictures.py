"""Forget images as PNG data URIs."""

from __future__ import annotations

import base64
import io

from torch import Tensor

from salun_fast._extras import need


def data_uri(image: Tensor) -> str:
    """A uint8 image [c, h, w] with one or three channels as ``data:image/png;base64,...``."""
    pillow = need("PIL.Image", "pictures in the report")
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    picture = pillow.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
