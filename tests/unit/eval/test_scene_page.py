"""Pages of classifier and segmenter side by side: what is drawn stands at its place, in every panel's own frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenlabel.data.scene_pictures import class_colours
from tokenlabel.eval.drawing import DIMMED
from tokenlabel.eval.prediction import Prediction
from tokenlabel.eval.scene_page import SHOWN_PX, SceneView, _shrunk, draw_scene_page, put_in_place

PANEL_PX = 390  # PANEL_IN at 150 px an inch
CLASSES = ("sky", "road", "tree")


def photograph(width: int = 120, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 100, 50))


def view(width: int = 120, height: int = 80, *, tokens: bool = True, mask: bool = True) -> SceneView:
    edge = (width - height) / 2 / width
    prediction = Prediction(
        Path("street.jpg"), np.array([0.1, 0.9], dtype=np.float32), np.full((2, 2, 1), 0.8, dtype=np.float32),
        np.array([[[0], [1]], [[1], [1]]]), torch.zeros(3, 8, 8), photograph(8, 8), (edge, 0.0, 1 - edge, 1.0),
    )  # fmt: skip
    ids = np.zeros((height, width), dtype=np.int16)
    ids[height // 2 :] = 1
    return SceneView(
        "street.jpg", photograph(width, height), prediction if tokens else None, (1,) if tokens else (),
        np.array([[[0, 1], [2, 3]]], dtype=np.float32) if tokens else None, ids if mask else None,
    )  # fmt: skip


def test_a_part_is_drawn_at_its_place_and_the_rest_is_dark() -> None:
    whole = photograph()
    drawn = np.asarray(
        put_in_place(whole, (20 / 120, 0, 100 / 120, 1), lambda part: Image.new("RGB", part.size, (0, 255, 0)))
    )
    assert (drawn[:, 20:100] == (0, 255, 0)).all()
    expected = np.round(np.array((200, 100, 50)) * DIMMED)
    for side in (drawn[:, :20], drawn[:, 100:]):
        assert np.abs(side.astype(int) - expected).max() <= 1


def test_a_large_photograph_shrinks_with_its_mask_and_no_third_class_appears() -> None:
    large = view(2000, 1000)
    assert large.mask is not None
    large.mask[:, 1500:] = -1
    small = _shrunk(large)
    assert small.photograph.size == (SHOWN_PX, SHOWN_PX // 2)
    assert small.mask is not None
    assert small.mask.shape == (SHOWN_PX // 2, SHOWN_PX)
    assert set(np.unique(small.mask).tolist()) == {-1, 0, 1}
    assert (
        small.mask[:, : SHOWN_PX * 3 // 4] == np.where(np.arange(SHOWN_PX // 2) < SHOWN_PX // 4, 0, 1)[:, None]
    ).all()
    assert (small.mask[:, SHOWN_PX * 3 // 4 :] == -1).all()


@pytest.mark.parametrize(
    ("tokens", "mask", "columns"),
    [(True, True, 4), (False, True, 2), (True, False, 3)],
    ids=["both", "masks", "tokens"],
)
def test_a_page_has_the_columns_that_there_are(tmp_path: Path, tokens: bool, mask: bool, columns: int) -> None:
    out = tmp_path / "page.png"
    views = [view(tokens=tokens, mask=mask), view(80, 120, tokens=tokens, mask=mask)]
    draw_scene_page(views, out, token_class=("cat", "dog").__getitem__, scene_classes=CLASSES if mask else ())
    with Image.open(out) as page:
        pixels = np.asarray(page.convert("RGB")).astype(int)
    assert pixels.shape[1] == pytest.approx(columns * PANEL_PX, rel=0.08)
    # the two classes that are there are named above the page in their own colours, the third is not
    colours = class_colours(len(CLASSES)).astype(int)
    there = [bool((np.abs(pixels - colour).sum(-1) < 6).any()) for colour in colours]
    assert there == [mask, mask, False]
