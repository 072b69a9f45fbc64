"""A map laid over its photograph: x to the right, y down, cells where they belong."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tokenlabel.eval.drawing import COLOURS, choose_colours, colour_map, overlay, readable_class


def test_a_cell_is_drawn_where_it_belongs() -> None:
    """An object in the upper right corner of a wide photograph; a drawing with swapped axes puts it at the lower left."""
    best_class = np.zeros((6, 6), dtype=np.uint16)
    best_class[0:2, 4:6] = 7
    picture = colour_map(best_class)
    legend = {index: colour for colour, index in picture.legend}
    drawn = np.array(overlay(Image.new("RGB", (240, 120)), picture.colours, opacity=1.0))
    red, green, blue = (int(legend[7][start : start + 2], 16) for start in (1, 3, 5))
    rows, cols = np.nonzero((drawn == (red, green, blue)).all(-1))
    assert (rows.min(), rows.max()) == (0, 39)
    assert (cols.min(), cols.max()) == (160, 239)


def test_one_class_has_one_colour_in_all_maps_of_a_photograph() -> None:
    first = np.array([[1, 1, 1], [2, 2, 3], [3, 3, 3]])
    second = np.array([[3, 3, 3], [3, 3, 3], [2, 2, 9]])
    colours = choose_colours([first, second])
    assert colours[3] == COLOURS[0]
    maps = [{i: c for c, i in colour_map(best, colours).legend} for best in (first, second)]
    assert maps[0][3] == maps[1][3]
    assert maps[0][2] == maps[1][2]


def test_wordnet_ids_are_shown_as_words_and_own_classes_as_they_are() -> None:
    assert readable_class("n01440764") == "tench"
    assert readable_class("my roses") == "my roses"
