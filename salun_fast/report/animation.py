"""A looping GIF of pictures, e.g. of the grid at every checkpoint of an unlearning run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from salun_fast import files
from salun_fast._extras import need
from salun_fast.report.colours import ACCENT, INK, LINE, PAGE, SOFT

if TYPE_CHECKING:
    from PIL.Image import Image

HOUSE_COLOURS = (PAGE, INK, SOFT, LINE, ACCENT)  # kept exactly, however few pixels have them
GREYS = tuple((value, value, value) for value in range(0, 256, 17))  # grey images stay grey
LEAST_COLOURS = 32
SAMPLED_FRAMES = 6  # from which the palette is taken


def animation(
    frames: Sequence[Image],
    path: str | os.PathLike[str],
    *,
    milliseconds: int = 500,
    hold: int = 2500,
    colours: int = 128,
) -> None:
    """Write ``path`` in one step: the frames in a loop, the last one held.

    milliseconds, hold: how long each frame and the last one stay; GIF counts in hundredths of a
    second. colours: size of the one palette that all frames share, 32..256. Frames that are
    smaller than the largest one are filled up at the right and below.
    """
    if not frames:
        raise ValueError("animation needs at least one frame, found none")
    if not LEAST_COLOURS <= colours <= 256:
        raise ValueError(f"colours must lie in {LEAST_COLOURS}..256, found {colours}")
    if min(milliseconds, hold) < 20:
        raise ValueError(
            f"milliseconds and hold must be at least 20, which is the fastest that browsers show, "
            f"found {milliseconds} and {hold}"
        )
    pillow = need("PIL.Image", "the animation")
    whole = _equal_sizes(frames)
    palette = _palette(whole, colours)
    indexed = [frame.quantize(palette=palette, dither=pillow.Dither.NONE) for frame in whole]
    durations = [milliseconds] * (len(frames) - 1) + [hold]

    def write(temporary: Path) -> None:
        indexed[0].save(
            temporary, format="GIF", save_all=True, append_images=indexed[1:],
            duration=durations, loop=0, optimize=False,
        )  # fmt: skip

    files.atomic_write(path, write)


def _equal_sizes(frames: Sequence[Image]) -> list[Image]:
    pillow = need("PIL.Image", "the animation")
    size = (max(f.width for f in frames), max(f.height for f in frames))
    whole = []
    for frame in frames:
        canvas: Image = pillow.new("RGB", size, PAGE)
        canvas.paste(frame.convert("RGB"))
        whole.append(canvas)
    return whole


def _palette(frames: list[Image], colours: int) -> Image:
    """The house's colours, greys, then the colours that the sampled frames need most."""
    pillow = need("PIL.Image", "the animation")
    count = min(len(frames), SAMPLED_FRAMES)
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    width, height = frames[0].size
    montage: Image = pillow.new("RGB", (width, height * count))
    for index, frame in enumerate(chosen):
        montage.paste(frame, (0, index * height))
    # Pillow's median cut streaks tinted images; its octree is several times closer on them.
    octree = pillow.Quantize.FASTOCTREE
    flat = montage.quantize(colours - len(HOUSE_COLOURS) - len(GREYS), octree).getpalette() or []
    house = [(int(c[1:3], 16), int(c[3:5], 16), int(c[5:], 16)) for c in HOUSE_COLOURS]
    found = [*GREYS, *zip(flat[::3], flat[1::3], flat[2::3], strict=True)]
    kept = house + [colour for colour in found if not any(_near(colour, own) for own in house)]
    palette: Image = pillow.new("P", (1, 1))
    palette.putpalette([value for colour in kept for value in colour])
    return palette


def _near(colour: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Pillow looks colours up in steps of 4 per channel: closer ones would be taken for ours."""
    return all(abs(a - b) < 8 for a, b in zip(colour, own, strict=True))
