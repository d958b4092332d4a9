"""The hero picture: the same seeds before | after | retrained, the forgotten rows outlined."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from salun_fast._extras import need
from salun_fast.evaluation.picture_check import check_pictures
from salun_fast.report.colours import ACCENT, INK, LINE, PAGE, SOFT
from salun_fast.report.lettering import font, line_height, widest, wrap, write
from salun_fast.report.pictures import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

PIXEL_RATIO = 2  # picture pixels per pixel of the page: show it at half its width

# Lengths on the page, in its pixels.
MARGIN = 16
LEAST_CELL, MOST_CELL = 36, 128
COLUMN_GAP = 2
ROW_GAP = 8  # leaves room for the outline
PANEL_GAP = 26
LABEL_WIDTH, LABEL_GAP = 170, 14
TITLE_GAP, CAPTION_GAP = 10, 12
OUTLINE, OUTLINE_PAD = 2, 2
TITLE_SIZE, NOTE_SIZE, LABEL_SIZE = 14, 11, 12
TITLE_LINES, NOTE_LINES, CAPTION_LINES = 2, 2, 3


@dataclass(frozen=True)
class Panel:
    """title: above the images, e.g. "before"; rows: per class or prompt the images of the same
    seeds, uint8 [k, c, h, w]; note: under the title in small, e.g. "UA 98 %"."""

    title: str
    rows: Sequence[Tensor]
    note: str = ""


def grid(
    panels: Sequence[Panel],
    row_labels: Sequence[str],
    *,
    forgotten: Collection[int] = (),
    caption: str = "",
    cell: int | None = None,
) -> Image:
    """Panels side by side, each a matrix of rows (classes or prompts) and columns (seeds).

    row_labels: one per row, at the left; long ones are wrapped and, at last, cut.
    forgotten: indices of the rows that are outlined, with their label, in the accent colour.
    caption: small, under it all.
    cell: side of an image on the page, in its pixels (default: 36 to 128 by the images' size);
        they are enlarged by a whole number, without smoothing, to about that, or reduced to it.
    Returns an RGB picture at twice the page's resolution: show it at half its width.
    Raises ValueError or TypeError naming panel and row where panels do not fit each other.
    """
    _check(panels, row_labels, forgotten, cell)
    layout = _Layout.of(panels, row_labels, forgotten, caption, cell)
    pillow, drawing = need("PIL.Image", "the grid"), need("PIL.ImageDraw", "the grid")
    canvas: Image = pillow.new("RGB", (layout.width, layout.height), PAGE)
    draw: ImageDraw = drawing.Draw(canvas)
    for index, label in enumerate(row_labels):
        _label(draw, layout, index, label, index in forgotten)
    for place, panel in enumerate(panels):
        _heading(draw, layout, place, panel)
        for index, images in enumerate(panel.rows):
            for column, image in enumerate(images):
                corner = layout.corner(place, index, column)
                _frame(draw, layout, corner)
                canvas.paste(layout.fitted(image), corner)
        for first, last in _runs(forgotten):
            _outline(draw, layout, place, first, last)
    face = font(_px(NOTE_SIZE))
    foot = layout.height - _px(MARGIN) - len(layout.caption) * line_height(face)
    write(draw, (_px(MARGIN), foot + line_height(face) / 2), layout.caption, face, SOFT)
    return canvas


@dataclass(frozen=True)
class _Layout:
    """Where things are, in picture pixels. cell: (width, height) of an image."""

    cell: tuple[int, int]
    columns: int
    rows: int
    panels: int
    left: int
    top: int
    titles: int  # height of the titles alone
    caption: list[str]

    @staticmethod
    def of(
        panels: Sequence[Panel],
        row_labels: Sequence[str],
        forgotten: Collection[int],
        caption: str,
        cell: int | None,
    ) -> _Layout:
        size = _cell(tuple(panels[0].rows[0].shape[-2:]), cell)
        columns = len(panels[0].rows[0])
        left = _px(MARGIN) + _label_column(row_labels, forgotten, size[1])
        wide = _span(columns, size[0], COLUMN_GAP)
        titles, notes = (max(len(_heading_lines(p, wide)[kind]) for p in panels) for kind in (0, 1))
        title_height = titles * line_height(font(_px(TITLE_SIZE), bold=True))
        head = title_height + notes * line_height(font(_px(NOTE_SIZE)))
        top = _px(MARGIN) + head + (_px(TITLE_GAP) if head else 0)
        full = left + len(panels) * (wide + _px(PANEL_GAP)) - _px(PANEL_GAP) - _px(MARGIN)
        foot = wrap(caption, font(_px(NOTE_SIZE)), full, CAPTION_LINES)
        return _Layout(size, columns, len(row_labels), len(panels), left, top, title_height, foot)

    @property
    def panel_width(self) -> int:
        return _span(self.columns, self.cell[0], COLUMN_GAP)

    @property
    def width(self) -> int:
        last, _ = self.corner(self.panels - 1, 0, self.columns - 1)
        return last + self.cell[0] + _px(MARGIN)

    @property
    def height(self) -> int:
        images = self.top + _span(self.rows, self.cell[1], ROW_GAP) + _px(MARGIN)
        if not self.caption:
            return images
        return images + len(self.caption) * line_height(font(_px(NOTE_SIZE))) + _px(CAPTION_GAP)

    def corner(self, panel: int, row: int, column: int) -> tuple[int, int]:
        """Top left of an image."""
        x = self.left + panel * (self.panel_width + _px(PANEL_GAP))
        return (
            x + column * (self.cell[0] + _px(COLUMN_GAP)),
            self.top + row * (self.cell[1] + _px(ROW_GAP)),
        )

    def fitted(self, image: Tensor) -> Image:
        """An image in the size of a cell: whole pixels when enlarged, averaged when reduced."""
        pillow = need("PIL.Image", "the grid")
        picture = as_picture(image).convert("RGB")
        larger = self.cell[0] >= picture.width
        how = pillow.Resampling.NEAREST if larger else pillow.Resampling.LANCZOS
        return picture.resize(self.cell, how)


def _px(length: int) -> int:
    return PIXEL_RATIO * length


def _span(count: int, size: int, gap: int) -> int:
    return count * size + (count - 1) * _px(gap)


def _cell(image: tuple[int, ...], wanted: int | None) -> tuple[int, int]:
    """(width, height) of a cell in picture pixels for images of (height, width)."""
    height, width = image
    longer = max(height, width)
    side = _px(min(max(LEAST_CELL, longer), MOST_CELL) if wanted is None else wanted)
    if longer > side:
        return max(round(width * side / longer), 1), max(round(height * side / longer), 1)
    scale = max(round(side / longer), 1)
    return width * scale, height * scale


def _label_column(labels: Sequence[str], forgotten: Collection[int], height: int) -> int:
    """Width of the labels with their distance to the images, in picture pixels."""
    widths = [
        widest(
            _label_lines(label, height, bold=index in forgotten),
            font(_px(LABEL_SIZE), bold=index in forgotten),
        )
        for index, label in enumerate(labels)
    ]
    return max(widths) + _px(LABEL_GAP) if any(widths) else _px(OUTLINE + OUTLINE_PAD)


def _label_lines(label: str, height: int, *, bold: bool) -> list[str]:
    face = font(_px(LABEL_SIZE), bold=bold)
    return wrap(label, face, _px(LABEL_WIDTH), max(height // line_height(face), 1))


def _heading_lines(panel: Panel, width: int) -> tuple[list[str], list[str]]:
    """Lines of the title and of the note."""
    return (
        wrap(panel.title, font(_px(TITLE_SIZE), bold=True), width, TITLE_LINES),
        wrap(panel.note, font(_px(NOTE_SIZE)), width, NOTE_LINES),
    )


def _heading(draw: ImageDraw, layout: _Layout, place: int, panel: Panel) -> None:
    titles, notes = _heading_lines(panel, layout.panel_width)
    bold, small = font(_px(TITLE_SIZE), bold=True), font(_px(NOTE_SIZE))
    x, _ = layout.corner(place, 0, 0)
    y = _px(MARGIN)
    write(draw, (x, y + line_height(bold) / 2), titles, bold, INK)
    y += layout.titles
    write(draw, (x, y + line_height(small) / 2), notes, small, SOFT)


def _label(draw: ImageDraw, layout: _Layout, row: int, label: str, accented: bool) -> None:
    face = font(_px(LABEL_SIZE), bold=accented)
    lines = _label_lines(label, layout.cell[1], bold=accented)
    _, top = layout.corner(0, row, 0)
    middle = top + layout.cell[1] / 2 - (len(lines) - 1) * line_height(face) / 2
    colour = ACCENT if accented else INK
    write(draw, (layout.left - _px(LABEL_GAP), middle), lines, face, colour, anchor="r")


def _frame(draw: ImageDraw, layout: _Layout, corner: tuple[int, int]) -> None:
    """A hairline, so that an image with a white ground ends somewhere."""
    (left, top), (width, height) = corner, layout.cell
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=LINE)


def _runs(rows: Collection[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of neighbouring rows: one outline serves them all."""
    chosen = set(rows)
    starts = sorted(row for row in chosen if row - 1 not in chosen)
    ends = sorted(row for row in chosen if row + 1 not in chosen)
    return list(zip(starts, ends, strict=True))


def _outline(draw: ImageDraw, layout: _Layout, panel: int, first: int, last: int) -> None:
    reach = _px(OUTLINE + OUTLINE_PAD)
    left, top = layout.corner(panel, first, 0)
    _, bottom = layout.corner(panel, last, 0)
    right, bottom = left + layout.panel_width - 1, bottom + layout.cell[1] - 1
    box = (left - reach, top - reach, right + reach, bottom + reach)
    draw.rounded_rectangle(box, radius=_px(3), outline=ACCENT, width=_px(OUTLINE))


# --- checks ---------------------------------------------------------------------------------------


def _check(
    panels: Sequence[Panel],
    row_labels: Sequence[str],
    forgotten: Collection[int],
    cell: int | None,
) -> None:
    if not panels or not row_labels:
        raise ValueError(
            f"grid needs at least one panel and one row, found {len(panels)} panels and "
            f"{len(row_labels)} row labels"
        )
    for panel in panels:
        if len(panel.rows) != len(row_labels):
            raise ValueError(
                f"panel {panel.title!r} has {len(panel.rows)} rows and there are "
                f"{len(row_labels)} row labels; give every panel one row per label"
            )
        for label, images in zip(row_labels, panel.rows, strict=True):
            name = f"row {label!r} of panel {panel.title!r}"
            check_pictures(name, images)
            _check_shape(name, images, panels[0].rows[0])
    if cell is not None and cell < 1:
        raise ValueError(f"cell must be at least 1 pixel, found {cell}")
    outside = [index for index in forgotten if not 0 <= index < len(row_labels)]
    if outside:
        raise ValueError(f"forgotten must hold rows 0..{len(row_labels) - 1}, found {outside[0]}")


def _check_shape(name: str, images: Tensor, first: Tensor) -> None:
    if images.shape[0] != first.shape[0] or images.shape[2:] != first.shape[2:]:
        raise ValueError(
            f"{name} has {len(images)} images of {list(images.shape[2:])} pixels and the first row "
            f"{len(first)} of {list(first.shape[2:])}; draw the same seeds in one size everywhere"
        )
