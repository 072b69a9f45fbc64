"""Photograph and mask go through one geometry, the scale is the drawn one, and what is drawn follows the recipe."""

from __future__ import annotations

import colorsys
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlabel.data.scenes import IGNORED, Scene
from tokenlabel.segment.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    SceneAugmentation,
    SceneDraw,
    draw_colours,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "crop_px": 64, "short_side_px": 64, "scale_range": [0.5, 2.0], "max_class_share": 1.0, "flip_probability": 0.5,
        "photometric": False,
    } | changes  # fmt: skip


def augmentation(**changes: Any) -> SceneAugmentation:
    return SceneAugmentation(recipe(**changes), MEAN, STD)


def coordinates(height: int, width: int) -> Scene:
    """Each pixel shows where it is: red its column, green its row, and its class the number of its 8 x 8 field."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([cols, rows, torch.zeros_like(rows)]).to(torch.uint8)
    return Scene(image, (rows // 8 * 32 + cols // 8).to(torch.int16))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 150), width=st.integers(1, 250), short_side_px=st.sampled_from([None, 30, 64, 100]),
    crop_px=st.sampled_from([16, 64, 100]), seed=st.integers(0, 10**9),
)  # fmt: skip
def test_photograph_and_mask_go_through_one_geometry(
    height: int, width: int, short_side_px: int | None, crop_px: int, seed: int
) -> None:
    augment = augmentation(crop_px=crop_px, short_side_px=short_side_px)
    scene = coordinates(height, width)
    draw = augment.draw(scene.mask, seed)
    image, mask = augment.square(scene, draw)
    assert image.shape == (3, crop_px, crop_px)
    assert mask.shape == (crop_px, crop_px)
    rows, cols = draw.size
    scale = draw.factor * min(height, width) / (short_side_px or min(height, width))
    assert 0.5 <= scale <= 2.0001 or draw.factor <= 1.001 / min(height, width)
    # as much as the crop's side allows, and nothing else
    for side, done in ((height, rows), (width, cols)):
        assert done == min(crop_px, max(1, int(side * draw.factor)))
    # where each pixel's centre lies in the scene
    x = draw.box[1] + (np.arange(cols) + 0.5) / draw.factor
    y = draw.box[0] + (np.arange(rows) + 0.5) / draw.factor
    if draw.flipped:
        x = x[::-1]
    assert x.min() >= 0 and x.max() <= width and y.min() >= 0 and y.max() <= height  # noqa: PT018
    expected = np.floor(y)[:, None] // 8 * 32 + np.floor(x) // 8
    assert (mask[:rows, :cols].numpy() == expected).all()
    assert (mask[rows:] == IGNORED).all()
    assert (mask[:, cols:] == IGNORED).all()
    fill = torch.tensor([round(255 * channel) for channel in MEAN], dtype=torch.uint8)
    assert (image[:, rows:] == fill[:, None, None]).all()
    assert (image[:, :, cols:] == fill[:, None, None]).all()
    # linear pictures stay linear but at the box's edges, where the filter sees less on one side
    reach = max(1.0, 1 / draw.factor) + 0.5
    for found, place, begin, side in (
        (image[0, 0, :cols].numpy(), x, draw.box[1], draw.box[3]),
        (image[1, :rows, 0].numpy(), y, draw.box[0], draw.box[2]),
    ):
        inner = (place > begin + reach) & (place < begin + side - reach)
        assert np.abs(found - (place - 0.5))[inner].max(initial=0) <= 1.0


def test_both_directions_have_the_drawn_scale() -> None:
    """A disc stays a disc of the drawn size."""
    y, x = np.mgrid[:512, :683]
    disc = ((x - 340) ** 2 + (y - 256) ** 2 < 150**2).astype(np.int16)
    scene = Scene(torch.from_numpy(disc).expand(3, -1, -1).to(torch.uint8) * 255, torch.from_numpy(disc))
    augment = augmentation(crop_px=512, short_side_px=512, scale_range=[0.633, 0.633])
    for seed in range(4):
        image, mask = augment.square(scene, augment.draw(scene.mask, seed))
        inside = mask == 1
        for direction in (0, 1):
            assert abs(int(inside.any(direction).sum()) - 2 * 150 * 0.633) <= 1
        assert ((image[0] > 127) != inside)[mask >= 0].float().mean() < 0.002


def test_scales_places_and_flips_are_spread_over_their_ranges() -> None:
    augment, mask = augmentation(crop_px=32), torch.zeros(64, 96, dtype=torch.int16)
    draws = [augment.draw(mask, seed) for seed in range(2000)]
    factors = np.array([draw.factor for draw in draws])
    assert 0.5 <= factors.min() < 0.51
    assert 1.99 < factors.max() <= 2.001
    assert abs(factors.mean() - 1.25) < 0.03
    assert abs(np.mean([draw.flipped for draw in draws]) - 0.5) < 0.05
    lefts = np.array([draw.box[1] / (96 - draw.box[3]) for draw in draws])
    assert abs(lefts.mean() - 0.5) < 0.03
    assert lefts.min() == 0
    assert lefts.max() == 1
    assert augment.draw(mask, 7) == augment.draw(mask, 7) != augment.draw(mask, 8)


def test_a_square_that_one_class_fills_is_drawn_again() -> None:
    """Two thirds of the scene are one class; with a limit, fewer squares of nothing else are drawn, and none where others fit."""
    mask = torch.zeros(200, 600, dtype=torch.int16)
    mask[:, 400:] = torch.arange(200).remainder(2).to(torch.int16) + 1
    mask[:100, 400:] = IGNORED

    def filled(limit: float) -> float:
        augment = augmentation(max_class_share=limit, scale_range=[1.0, 1.0], short_side_px=200)
        found = 0
        for seed in range(200):
            top, left, height, width = augment.draw(mask, seed).box
            counts = Counter(mask[top : top + height, left : left + width].flatten().tolist())
            del counts[IGNORED]
            found += max(counts.values(), default=0) > 0.75 * counts.total() or not counts
        return found / 200

    assert filled(1.0) > 0.7
    assert filled(0.75) < 0.3


def test_colours_are_drawn_as_often_and_as_far_as_they_should() -> None:
    rng = random.Random(0)
    drawn = [draw_colours(rng) for _ in range(4000)]
    limits = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
    for name, (least, most) in limits.items():
        amounts = np.array([amount for colours in drawn for found, amount in colours if found == name])
        assert abs(len(amounts) / 4000 - 0.5) < 0.03
        assert least <= amounts.min() < least + 0.02 * (most - least)
        assert most - 0.02 * (most - least) < amounts.max() <= most
    orders = Counter(tuple(name for name, _ in colours) for colours in drawn if len(colours) == 4)
    assert set(orders) == {
        ("brightness", "contrast", "saturation", "hue"), ("brightness", "saturation", "hue", "contrast"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ((("brightness", 1.1),), lambda r, g, b: (1.1 * r, 1.1 * g, 1.1 * b)),
        ((("hue", 0.05),), lambda r, g, b: colorsys.hsv_to_rgb(*_turned(colorsys.rgb_to_hsv(r, g, b), 0.05))),
        ((("saturation", 0.0),), lambda r, g, b: (0.2989 * r + 0.587 * g + 0.114 * b,) * 3),
    ],
    ids=["brightness", "hue", "saturation"],
)
def test_colours_change_inside_the_scene_only(colours: tuple[tuple[str, float], ...], expected: Any) -> None:
    image = torch.randint(0, 200, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draw = SceneDraw(box=(0, 0, 10, 12), factor=1.0, size=(10, 12), flipped=False, colours=colours)
    changed = augmentation(crop_px=16).recolour(image.clone(), draw)
    assert torch.equal(changed[:, 10:], image[:, 10:])
    assert torch.equal(changed[:, :, 12:], image[:, :, 12:])
    for row, col in ((0, 0), (9, 11), (4, 7)):
        shares = expected(*(image[:, row, col] / 255).tolist())
        assert np.abs(changed[:, row, col].numpy() - 255 * np.array(shares)).max() <= 1.5


def _turned(hsv: tuple[float, float, float], turns: float) -> tuple[float, float, float]:
    return (hsv[0] + turns) % 1, hsv[1], hsv[2]
