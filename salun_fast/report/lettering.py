"""Text in pictures: matplotlib's own DejaVu Sans, wrapped and cut to a width."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from salun_fast._extras import need

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

ELLIPSIS = "…"
LEADING = 1.28  # line height in units of the font size


@cache
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans of ``size`` pixels, from the files matplotlib ships: none of the system's."""
    matplotlib = need("matplotlib", "text in pictures")
    fonts = need("PIL.ImageFont", "text in pictures")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    loaded: FreeTypeFont = fonts.truetype(str(path), size)
    return loaded


def wrap(text: str, face: FreeTypeFont, width: float, lines: int) -> list[str]:
    """At most ``lines`` lines of at most ``width`` pixels, broken at spaces, in a word where it is
    longer than a line; what does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    words = text.split()
    while words and len(wrapped) < lines:
        line, words = _line(words, face, width)
        wrapped.append(line)
    if words:
        wrapped[-1] = _cut(wrapped[-1] + ELLIPSIS, face, width)
    return wrapped


def _line(words: list[str], face: FreeTypeFont, width: float) -> tuple[str, list[str]]:
    """The first line, and the words left for the next ones."""
    count = 1
    while count < len(words) and face.getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    line = " ".join(words[:count])
    if count > 1 or face.getlength(line) <= width:
        return line, words[count:]
    size = len(line) - 1
    while size > 1 and face.getlength(line[:size]) > width:
        size -= 1
    return line[:size], [line[size:], *words[1:]]


def _cut(line: str, face: FreeTypeFont, width: float) -> str:
    while len(line) > 1 and face.getlength(line) > width:
        line = line[:-2].rstrip() + ELLIPSIS
    return line


def line_height(face: FreeTypeFont) -> int:
    return round(face.size * LEADING)


def widest(lines: list[str], face: FreeTypeFont) -> int:
    """Pixels of the longest line; 0 for none."""
    return max((-int(-face.getlength(line) // 1) for line in lines), default=0)


def write(
    draw: ImageDraw,
    place: tuple[float, float],
    lines: list[str],
    face: FreeTypeFont,
    colour: str,
    *,
    anchor: str = "l",
) -> None:
    """Lines under each other, each ``anchor``-ed (l, m or r) at place = (x, middle of the first
    line's height)."""
    for index, line in enumerate(lines):
        at = (place[0], place[1] + index * line_height(face))
        draw.text(at, line, font=face, fill=colour, anchor=f"{anchor}m")
