"""The grid and its animation: every pixel where a reader expects it."""

from __future__ import annotations

import base64
import io

import pytest
import torch

from salun_fast.report.animation import animation
from salun_fast.report.colours import ACCENT, LINE, PAGE
from salun_fast.report.grid import PIXEL_RATIO, Panel, grid
from salun_fast.report.lettering import font, widest, wrap
from salun_fast.report.pictures import data_uri, gif_uri, png_uri, write_png

pillow = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
numpy = pytest.importorskip("numpy")

LABELS = ("0", "1", "2", "3")


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def colour_of(panel, row):
    return (60 * panel + 20, 40 * row + 20, 200)


def solid(panel, row, count=3, side=16):
    return torch.tensor(colour_of(panel, row), dtype=torch.uint8).view(1, 3, 1, 1).repeat(
        count, 1, side, side
    )  # fmt: skip


def panels(count=2, rows=4, **changed):
    return [
        Panel(f"panel {p}", [solid(p, r, **changed) for r in range(rows)]) for p in range(count)
    ]


def found(picture, colour):
    """(left, top, right, bottom) of the pixels of a colour, ends included, and how many."""
    ys, xs = numpy.nonzero((numpy.asarray(picture) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max()), len(xs)


# --- the grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 72), (16, 64), (28, 84), (32, 64), (64, 128), (128, 256), (300, 256)]
)
def test_images_are_enlarged_by_a_whole_number_or_reduced_to_a_cell(side, expected):
    picture = grid(panels(side=side), LABELS)
    left, top, right, bottom, count = found(picture, colour_of(0, 1))
    assert bottom - top + 1 == expected
    assert right - left + 1 == 3 * expected + 2 * 2 * PIXEL_RATIO
    assert count == 3 * expected**2


def test_every_pixel_of_a_small_image_becomes_a_square_of_its_colour():
    image = torch.arange(0, 240, 15, dtype=torch.uint8).view(1, 1, 4, 4)
    picture = grid([Panel("", [image])], [""], cell=10)
    left, top, *_ = found(picture, (225, 225, 225))
    side = 10 * PIXEL_RATIO // 4
    corner = left - 3 * side, top - 3 * side
    cut = numpy.asarray(picture.crop((*corner, left + side, top + side)))[:, :, 0]
    expected = image[0, 0].repeat_interleave(side, 0).repeat_interleave(side, 1)
    assert numpy.array_equal(cut, expected.numpy())


def test_rows_and_columns_line_up_in_all_panels():
    picture = grid(panels(3), LABELS)
    boxes = {(p, r): found(picture, colour_of(p, r)) for p in range(3) for r in range(4)}
    for (panel, row), (left, top, right, bottom, _) in boxes.items():
        assert (left, right) == (boxes[panel, 0][0], boxes[panel, 0][2])
        assert (top, bottom) == (boxes[0, row][1], boxes[0, row][3])
    assert boxes[0, 0][0] < boxes[1, 0][0] < boxes[2, 0][0]


def test_forgotten_rows_are_outlined_in_every_panel_and_no_others():
    picture = grid(panels(3), LABELS, forgotten=[1])
    for panel in range(3):
        for row in range(4):
            left, top, right, bottom, _ = found(picture, colour_of(panel, row))
            x, y = (left + right) // 2, (top + bottom) // 2
            around = [(x, top - 6), (x, bottom + 6), (left - 6, y), (right + 6, y)]
            expected = rgb(ACCENT) if row == 1 else rgb(PAGE)
            assert [picture.getpixel(at) for at in around] == [expected] * 4


def test_neighbouring_forgotten_rows_share_one_outline():
    picture = grid(panels(), LABELS, forgotten=[2, 1])
    left, top, right, bottom, _ = found(picture, colour_of(0, 1))
    between = (bottom + found(picture, colour_of(0, 2))[1]) // 2
    assert picture.getpixel(((left + right) // 2, between)) == rgb(PAGE)
    assert picture.getpixel((left - 6, between)) == rgb(ACCENT)
    assert picture.getpixel(((left + right) // 2, top - 6)) == rgb(ACCENT)


def test_only_the_label_of_a_forgotten_row_is_in_the_accent_colour():
    picture = grid(panels(), ("aa", "bb", "cc", "dd"), forgotten=[3])
    start = found(picture, colour_of(0, 0))[0] - 12
    labels = picture.crop((0, 0, start, picture.height))
    _, top, _, bottom, _ = found(labels, rgb(ACCENT))
    _, row_top, _, row_bottom, _ = found(picture, colour_of(0, 3))
    assert row_top < top < bottom < row_bottom


@pytest.mark.parametrize(
    "label",
    [
        "a photo of an inverted ankle boot seen from above " * 3,
        "x" * 200,
        "i i i i " * 40,
        "W" * 30,
    ],
)
@pytest.mark.parametrize("forgotten", [[], [0]])
def test_long_labels_and_titles_stay_within_their_space(label, forgotten):
    one = [Panel(label, [solid(0, 0), solid(0, 1)], note=label), Panel("b", [solid(1, 0)] * 2)]
    picture = grid(one, [label, "short"], forgotten=forgotten, caption=label * 3)
    pixels = numpy.asarray(picture)
    margin = 8 * PIXEL_RATIO
    frame = pixels.copy()
    frame[margin:-margin, margin:-margin] = rgb(PAGE)
    assert (frame == rgb(PAGE)).all()
    left, top, *_ = found(picture, colour_of(0, 0))
    bottom = found(picture, colour_of(0, 1))[3]
    assert (pixels[top:bottom, left - 20 : left - 10] == rgb(PAGE)).all()
    head = pixels[: top - 10]
    right, start = found(picture, colour_of(0, 0))[2], found(picture, colour_of(1, 0))[0]
    assert (head[:, right + 2 : start] == rgb(PAGE)).all()


def test_grey_and_colour_panels_mix_and_nothing_is_drawn_without_labels():
    grey = Panel("", [torch.full((2, 1, 8, 8), 77, dtype=torch.uint8)])
    colour = Panel("", [solid(1, 0, count=2, side=8)])
    picture = grid([grey, colour], [""])
    colours = {colour for _, colour in picture.getcolors()}
    assert colours == {rgb(PAGE), rgb(LINE), (77, 77, 77), colour_of(1, 0)}


def test_the_same_input_gives_the_same_picture():
    first, second = (grid(panels(), LABELS, forgotten=[0], caption="c") for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"panels": []}, ValueError, "at least one panel"),
        ({"panels": panels(rows=3)}, ValueError, "'panel 0' has 3 rows and there are 4"),
        ({"forgotten": [4]}, ValueError, "forgotten must hold rows 0..3, found 4"),
        ({"cell": 0}, ValueError, "cell must be at least 1"),
        (
            {"panels": [*panels(), Panel("odd", [solid(0, 0, count=2)] * 4)]},
            ValueError,
            "row '0' of panel 'odd' has 2 images of \\[16, 16\\] pixels and the first row 3",
        ),
        (
            {"panels": [Panel("raw", [torch.zeros(3, 3, 16, 16)] * 4)]},
            TypeError,
            "row '0' of panel 'raw' must be uint8 .*127.5",
        ),
    ],
)
def test_panels_that_do_not_fit_are_refused(changed, error, message):
    arguments = {"panels": panels(), "row_labels": LABELS} | changed
    with pytest.raises(error, match=message):
        grid(**arguments)


def test_text_is_wrapped_at_spaces_and_cut_with_an_ellipsis():
    face = font(24)
    assert wrap("", face, 100, 2) == []
    assert wrap("ab cd", face, 500, 2) == ["ab cd"]
    width = face.getlength("of a")
    assert wrap("photo of a bag", face, face.getlength("photo"), 4) == ["photo", "of a", "bag"]
    cut = wrap("photo of a bag in ink", face, face.getlength("photo"), 2)
    assert cut[0] == "photo"
    assert cut[1].endswith("…")
    for lines in (wrap("of a " * 9, face, width, 3), wrap("m" * 90, face, width, 3)):
        assert len(lines) == 3
        assert widest(lines, face) <= width + 1


# --- the animation --------------------------------------------------------------------------------


def frames(count=4):
    return [
        grid(
            [Panel("after", [solid(s % 3, r) for r in range(2)], f"step {s}")], "ab", forgotten=[1]
        )
        for s in range(count)
    ]


def test_the_animation_loops_and_holds_its_last_frame(tmp_path):
    animation(frames(), tmp_path / "a.gif", milliseconds=120, hold=3000)
    with pillow.open(tmp_path / "a.gif") as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 4, 0)
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert durations == [120, 120, 120, 3000]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_the_house_colours_survive_a_small_palette(tmp_path):
    noise = torch.randint(
        0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    one = grid([Panel("a", [noise, noise])], "ab", forgotten=[1])
    animation(
        [one, one.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)], tmp_path / "a.gif", colours=32
    )
    with pillow.open(tmp_path / "a.gif") as gif:
        first = gif.convert("RGB")
    assert len(first.getcolors()) <= 32
    assert first.size == one.size
    for colour in (ACCENT, PAGE):
        assert found(first, rgb(colour))[4] >= found(one, rgb(colour))[4] > 0


def test_grey_images_stay_grey_beside_coloured_ones(tmp_path):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    one = grid([Panel("", [ramp, solid(2, 1, count=1)])], ["", ""])
    animation([one], tmp_path / "a.gif")
    left, top, *_ = found(one, colour_of(2, 1))
    where = (left, top - 64 - 8 * PIXEL_RATIO, left + 64, top - 8 * PIXEL_RATIO)
    with pillow.open(tmp_path / "a.gif") as gif:
        shown = numpy.asarray(gif.convert("RGB").crop(where)).astype(int)
    assert (shown.max(axis=2) - shown.min(axis=2)).max() <= 10  # INK's own tint
    assert abs(shown - numpy.asarray(one.crop(where)).astype(int)).max() <= 20


def test_frames_of_other_sizes_are_filled_up_with_the_page(tmp_path):
    small, large = grid(panels(1, 2), "ab"), grid(panels(2, 3), "abc")
    animation([small, large], tmp_path / "a.gif")
    with pillow.open(tmp_path / "a.gif") as gif:
        assert gif.size == large.size
        assert gif.convert("RGB").getpixel((large.width - 1, large.height - 1)) == rgb(PAGE)


def test_an_animation_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    animation(frames(2), path)
    before = path.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pillow.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        animation(frames(3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": []}, "at least one frame"),
        ({"colours": 4}, "colours must lie in 32..256, found 4"),
        ({"milliseconds": 0}, "milliseconds and hold must be at least 20"),
    ],
)
def test_an_impossible_animation_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        animation(**({"frames": frames(1), "path": tmp_path / "a.gif"} | arguments))
    assert list(tmp_path.iterdir()) == []


# --- embedding ------------------------------------------------------------------------------------


def decoded(uri, kind):
    head, _, content = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    return base64.b64decode(content)


def test_uris_and_files_hold_the_picture_itself(tmp_path):
    picture = grid(panels(), LABELS)
    with pillow.open(io.BytesIO(decoded(png_uri(picture), "png"))) as again:
        assert again.tobytes() == picture.tobytes()
    write_png(picture, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == decoded(png_uri(picture), "png")
    animation(frames(2), tmp_path / "a.gif")
    assert decoded(gif_uri(tmp_path / "a.gif"), "gif") == (tmp_path / "a.gif").read_bytes()
    with pillow.open(io.BytesIO(decoded(data_uri(solid(0, 0)[0]), "png"))) as image:
        assert image.getpixel((5, 5)) == colour_of(0, 0)
