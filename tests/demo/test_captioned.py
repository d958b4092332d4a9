"""Captioned pictures: every style looks as it says, every caption says what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from salun_fast.data import load_images
from salun_fast.data.sources import FASHION_CLASSES
from salun_fast.demo.captioned import (
    MARGIN,
    STYLES,
    captioned,
    object_words,
    prompt,
    render,
)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def all_styles(grey):
    """[styles, 3, size, size]: one grey picture in every style."""
    return render(grey.expand(len(STYLES), -1, -1, -1), torch.arange(len(STYLES)))


def test_captions_are_sentences_that_a_person_would_write():
    words = object_words(FASHION_CLASSES)
    assert prompt(words[7]) == "a photo of a sneaker"
    assert prompt(words[0], "outline") == "an outline of a t-shirt"
    assert prompt(words[1], "red") == "a red photo of trousers"
    assert prompt(words[9], "inverted") == "an inverted photo of a boot"
    assert [prompt(word) for word in object_words(("1", "8", "Apple"))] == [
        "a photo of a one", "a photo of an eight", "a photo of an apple",
    ]  # fmt: skip


def test_each_picture_has_the_caption_of_its_class_and_style(digits):
    pictures = captioned(digits)
    assert pictures.images.shape == (len(digits.train), 3, 32, 32)
    assert pictures.images.dtype == torch.uint8
    assert torch.equal(pictures.objects, digits.train.labels)
    names = list(STYLES)
    for index in (0, 5, -1):
        word = pictures.object_words[digits.train.labels[index]]
        assert pictures.prompts[index] == prompt(word, names[pictures.styles[index]])


def test_every_pair_of_object_and_style_is_equally_frequent(digits):
    pictures = captioned(digits)
    counts = torch.bincount(pictures.objects * len(STYLES) + pictures.styles)
    for per_object in counts.view(digits.num_classes, len(STYLES)):
        assert per_object.max() - per_object.min() <= 1


def test_pictures_of_28_pixels_keep_their_pixels():
    grey = torch.randint(256, (1, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    plain = all_styles(grey.to(torch.uint8))[0]
    inside = plain[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert all(torch.equal(channel.long(), grey[0, 0]) for channel in inside)
    assert plain.sum() == inside.sum()


def test_inverted_is_the_complement_and_red_keeps_the_red_channel(digits):
    plain, inverted, _, red = all_styles(digits.train.images[:1])
    assert torch.equal(inverted, 255 - plain)
    assert torch.equal(red[0], plain[0])
    assert int(red[1].max()) < 50
    assert torch.equal(red[1], red[2])


def test_an_outline_is_white_at_edges_and_black_in_flat_areas():
    square = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    square[..., 6:22, 6:22] = 255
    outline = all_styles(square)[2]
    assert int(outline[0, 16, 6 + MARGIN]) == 255
    assert outline[:, 12:20, 12:20].max() == 0
    assert outline[:, :4].max() == 0


def test_the_same_data_give_the_same_set_and_the_test_part_is_another(digits):
    first, second = captioned(digits), captioned(digits)
    assert torch.equal(first.images, second.images)
    assert len(captioned(digits, part="test")) == len(digits.test)


def test_a_size_of_one_s_own_is_rendered(digits):
    assert captioned(digits, size=16).images.shape[-2:] == (16, 16)


def test_bad_input_is_named(digits):
    with pytest.raises(ValueError, match="part must be 'train' or 'test', found 'val'"):
        captioned(digits, part="val")
    with pytest.raises(ValueError, match="size must be more than 4 pixels, found 4"):
        captioned(digits, size=4)
    with pytest.raises(ValueError, match="style must be one of plain, .*, found 'cubist'"):
        prompt("sneaker", "cubist")
    colour = replace(digits.train, images=digits.train.images.repeat(1, 3, 1, 1), mean=None)
    with pytest.raises(ValueError, match="found 3 channels in 'digits'"):
        captioned(replace(digits, train=colour))
