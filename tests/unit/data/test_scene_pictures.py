"""Masks as pictures: the right colour at the right pixel, grey where nothing is known, colours that people can tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tokenlabel.data.scene_pictures import (
    IGNORED_COLOUR,
    class_colours,
    lab_of,
    largest_classes,
    lay_classes,
    paint_classes,
    with_legend,
)


def test_colours_are_stable_by_class_and_differ() -> None:
    many = class_colours(150)
    np.testing.assert_array_equal(many[:11], class_colours(11))
    assert len(np.unique(many, axis=0)) == 150
    first = lab_of(class_colours(12))
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1) + 999 * np.eye(12)
    assert apart.min() > 25  # in CIELAB, where about 2 can just be told apart
    assert (np.ptp(many.astype(int), axis=1) > 20).all()  # none is as grey as an ignored pixel


def test_pixels_get_their_classes_colours_and_ignored_ones_grey() -> None:
    mask = np.array([[0, 1, -1], [2, 2, 7]], dtype=np.int16)  # 7: beyond the three classes
    painted, colours = paint_classes(mask, 3), class_colours(3)
    for row, column, expected in [(0, 0, colours[0]), (0, 1, colours[1]), (1, 0, colours[2]), (1, 1, colours[2])]:
        np.testing.assert_array_equal(painted[row, column], expected)
    assert tuple(painted[0, 2]) == tuple(painted[1, 2]) == IGNORED_COLOUR


def test_a_mask_lies_on_its_own_pixels_and_the_photograph_shows_through() -> None:
    photograph = Image.new("RGB", (6, 4), (200, 40, 40))
    photograph.paste((0, 0, 0), (0, 0, 3, 4))  # dark left half
    mask = np.zeros((4, 6), dtype=np.int16)
    mask[3] = 1
    drawn = np.asarray(lay_classes(photograph, mask, 2, opacity=0.5)).astype(int)
    grey = np.asarray(photograph.convert("L")).astype(int)
    expected = (grey[..., None] + class_colours(2)[mask]) / 2
    assert np.abs(drawn - expected).max() <= 1
    with pytest.raises(ValueError, match=r"mask of \(4, 5\)"):
        lay_classes(photograph, mask[:, :5], 2)


def test_largest_classes_count_only_pixels_that_are_of_a_class() -> None:
    mask = np.array([[3, 3, 3, 1], [-1, -1, -1, -1]], dtype=np.int16)
    assert largest_classes([mask], 4, 5) == {3: 0.75, 1: 0.25}
    assert largest_classes([mask, mask], 4, 1) == {3: 0.75}
    assert largest_classes([np.full((2, 2), -1)], 4, 3) == {}


def test_legend_stands_below_the_picture_in_the_classes_colours() -> None:
    picture = Image.new("RGB", (300, 50), (1, 2, 3))
    whole = with_legend(picture, [2, 0], ["sky", "road", "a tree with a very long name that has to be cut short"])
    assert whole.width == 300
    assert whole.height > 50
    assert whole.crop((0, 0, 300, 50)).tobytes() == picture.tobytes()
    seen = {tuple(pixel) for pixel in np.asarray(whole)[50:].reshape(-1, 3).tolist()}
    assert tuple(class_colours(3)[2].tolist()) in seen
    assert tuple(class_colours(3)[0].tolist()) in seen
    assert tuple(class_colours(3)[1].tolist()) not in seen
    assert with_legend(picture, [], ["sky"]).tobytes() == picture.tobytes()


def test_a_narrow_pictures_legend_is_not_cut_off() -> None:
    names = ["sky", "pedestrian crossing"]
    broad, narrow = (with_legend(Image.new("RGB", (width, 50)), [1, 0], names) for width in (400, 20))
    words = [(np.asarray(whole)[50:].sum(-1) < 300).sum() for whole in (broad, narrow)]  # black
    assert words[0] == words[1] > 0
    assert narrow.getpixel((19, 49)) == (0, 0, 0)
    assert narrow.getpixel((20, 49)) == (255, 255, 255)
