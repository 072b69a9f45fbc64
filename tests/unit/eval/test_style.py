"""The style of all figures: told apart without colour vision and in grey print, text that stays in its room."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from tokenlabel.eval import style
from tokenlabel.eval.charts import BAR_COLOURS, Look
from tokenlabel.eval.titles import setting_title, title_of

# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def lab(colour: str, seen_by: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """CIE L*a*b* of a colour, as somebody with that kind of vision sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if seen_by is not None:
        linear = np.clip(seen_by @ linear, 0, 1)
    ratio = TO_XYZ @ linear / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen_by", [None, DEUTERANOPIA, PROTANOPIA], ids=["all colours", "deuteranopia", "protanopia"])
def test_series_differ_for_all_readers(seen_by: NDArray[np.float64] | None) -> None:
    for one, other in itertools.combinations(style.COLOURS, 2):
        assert np.linalg.norm(lab(one, seen_by) - lab(other, seen_by)) > 12, (one, other)
    for one, other in itertools.combinations(style.COLOURS[:3], 2):  # those that nearly all figures use
        assert np.linalg.norm(lab(one, seen_by) - lab(other, seen_by)) > 25, (one, other)


def test_series_differ_in_grey_print() -> None:
    looks = [(Look(place).marker, Look(place).dashes) for place in range(len(style.COLOURS))]
    assert len(set(looks)) == len(looks)
    for one, other in itertools.pairwise(BAR_COLOURS):
        assert abs(lab(one)[0] - lab(other)[0]) > 14, (one, other)
    assert abs(lab(BAR_COLOURS[0])[0] - lab(BAR_COLOURS[1])[0]) > 20  # hard labels beside token labels


def test_the_style_file_is_all_there_is(repository: Path) -> None:
    assert style.STYLE["savefig.bbox"] is None  # standard: figures keep their size
    for path in (repository / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "rcParams[" not in text, path
        assert "bbox_inches" not in text, path
    before = matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"]
    with style.styled():
        assert matplotlib.rcParams["text.parse_math"] is False
        assert matplotlib.rcParams["figure.dpi"] == 200
    assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"]) == before


@pytest.mark.parametrize(
    "text", ["a b c " * 30, "x" * 300, "猫と犬" * 40, "", "one"], ids=["words", "one word", "kanji", "none", "short"]
)
def test_wrapped_lines_are_no_broader_than_their_room(text: str) -> None:
    with style.styled():
        found = style.wrapped(text, 2.0, 8)
        assert "".join(found.split()) == "".join(text.split())
        assert all(style.width_in(line, 8) <= 2.0 for line in found.split("\n"))
        cut = style.wrapped(text, 2.0, 8, most_lines=2)
        assert cut.count("\n") < 2
        assert all(style.width_in(line, 8) <= 2.0 for line in cut.split("\n"))
        assert cut.endswith("…") == (found.count("\n") > 1)


def test_title_legend_charts_and_notes_lie_below_each_other() -> None:
    with style.styled():
        title_lines = ["A title of more words than one line of the page has room for. " * 3, "Table 2"]
        figure = style.page(2.0, title_lines, ["A note. " * 40])
        figure.subplots()
        handles = [Line2D([], [], label=f"an entry of the legend, number {number}") for number in range(9)]
        style.add_legend(figure, handles)
        figure.draw_without_rendering()
        title, notes = (text.get_window_extent() for text in figure.texts)
        (legend,) = (legend.get_window_extent() for legend in figure.legends)
        axes = figure.axes[0].get_tightbbox()
    assert axes is not None
    assert (
        figure.bbox.y1 >= title.y1 > title.y0 > legend.y1 > legend.y0 >= axes.y1 > axes.y0 >= notes.y1 > notes.y0 >= 0
    )
    assert max(title.x1, legend.x1, axes.x1, notes.x1) <= figure.bbox.x1
    assert axes.height > 1.7 * figure.dpi  # however many lines the legend has


def test_legend_entries_may_begin_with_an_underscore() -> None:
    with style.styled():
        figure = style.page(1.0, ["title"], [])
        style.add_legend(figure, [Line2D([], [], label=style.words("_hidden"))])
    (entry,) = figure.legends[0].get_texts()
    assert entry.get_text().strip() == "_hidden"


def test_a_file_that_cannot_be_written_leaves_none_behind(tmp_path: Path) -> None:
    class Broken(Figure):
        def savefig(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        style.save(Broken(), tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("lvvit_s", "LV-ViT-S"),
        ("t2t_vit_14", "T2T-ViT-14"),
        ("t2t_vit_t_14", "T2T-ViT-T-14"),
        ("mixer_l", "Mixer-L"),
        ("resnest50", "ResNeSt-50"),
        ("resnest269e", "ResNeSt-269E"),
        ("efficientnet_lite0", "EfficientNet-Lite0"),
        ("lvvit_small", "LV-ViT-Small"),
        ("my_own_model", "my_own_model"),
        ("deit", "deit"),
    ],
)
def test_names_of_the_catalogue_as_people_write_them(name: str, title: str) -> None:
    assert title_of(name) == title


def test_what_a_row_changes_in_words() -> None:
    differs = {"model": "lvvit_s", "train.supervision": "hard", "finetune_px": [384]}
    assert setting_title(differs, "model") == "hard labels, finetune px [384]"
    assert setting_title({"model": "lvvit_s"}, "model") == ""
