"""Mixing of photographs: the targets follow the pixels and tokens, whatever the grid, the box and the size of the batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenlabel.labels import SparseTargets, one_hot_targets, sparse_targets
from tokenlabel.models import MixBox
from tokenlabel.train.supervision import MixDraw, draw_mix, mix_class_target, mix_pixels, mix_token_targets

CLASSES = 50
RECIPE = {"mix": "none", "mix_probability": 1.0, "mix_alpha": 1.0, "mixup_alpha": 0.8}


def pictures(batch: int, side: int) -> Tensor:
    """Photograph b has the grey level b everywhere."""
    return torch.arange(float(batch))[:, None, None, None].expand(batch, 3, side, side).clone()


def token_targets(batch: int, grid: tuple[int, int], seed: int) -> SparseTargets:
    """Targets that differ from photograph to photograph and from cell to cell."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, 5, 5, 2, generator=generator) * 6
    classes = torch.rand(batch, 5, 5, CLASSES, generator=generator).argsort(-1)[..., :2]
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(batch, 4)
    return sparse_targets(scores, classes, boxes, grid=grid, num_classes=CLASSES)


def drawn(kind: str, grid: tuple[int, int], side: int, seed: int) -> MixDraw:
    return draw_mix(RECIPE | {"mix": kind}, grid, side, random.Random(seed))


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids, st.integers(1, 5), st.integers(8, 21), st.integers(0, 2**32))
def test_cutmix_targets_weigh_by_the_pixels_that_a_token_shows(
    grid: tuple[int, int], batch: int, side: int, seed: int
) -> None:
    draw = drawn("cutmix", grid, side, seed)
    assert draw.pixel_box is not None
    mixed = mix_pixels(pictures(batch, side), draw)
    targets = token_targets(batch, grid, seed)
    dense, followed = targets.dense(), mix_token_targets(targets, draw, side).dense()
    for image in range(batch):
        own = mixed[image, 0] == image  # the middle photograph of an odd batch is its own partner
        partner = batch - 1 - image
        for token in range(grid[0] * grid[1]):
            (top, bottom), (left, right) = cell(token // grid[1], grid[0], side), cell(token % grid[1], grid[1], side)
            share = own[top:bottom, left:right].float().mean()
            expected = share * dense[image, token] + (1 - share) * dense[partner, token]
            torch.testing.assert_close(followed[image, token], expected, atol=1e-6, rtol=1e-5)
    labels = one_hot_targets(torch.arange(batch), CLASSES, 0.1)
    whole = (mixed[:, 0] == torch.arange(batch)[:, None, None]).float().mean((1, 2))[:, None, None]
    expected = whole * labels.dense() + (1 - whole) * labels.dense().flip(0)
    torch.testing.assert_close(mix_class_target(labels, draw).dense(), expected, atol=1e-6, rtol=1e-5)


def cell(index: int, count: int, side: int) -> tuple[int, int]:
    """First pixel of a cell and the one after its last; cells overlap by a pixel where the grid does not divide the side."""
    return index * side // count, -(-(index + 1) * side // count)


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_mixup_blends_pictures_and_all_targets_alike(grid: tuple[int, int], batch: int, seed: int) -> None:
    draw = drawn("mixup", grid, 8, seed)
    assert draw.blend is not None
    assert (draw.pixel_box, draw.token_box) == (None, None)
    images = pictures(batch, 8)
    targets, labels = token_targets(batch, grid, seed), one_hot_targets(torch.arange(batch), CLASSES, 0.1)
    pairs = [
        (mix_pixels(images, draw), images),
        (mix_token_targets(targets, draw, 8).dense(), targets.dense()),
        (mix_class_target(labels, draw).dense(), labels.dense()),
    ]
    for mixed, plain in pairs:
        torch.testing.assert_close(mixed, draw.blend * plain + (1 - draw.blend) * plain.flip(0), atol=1e-6, rtol=1e-5)


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_mixtoken_leaves_pixels_and_token_targets_and_weighs_the_class_by_area(
    grid: tuple[int, int], batch: int, seed: int
) -> None:
    draw = drawn("mixtoken", grid, 8, seed)
    assert draw.token_box is not None
    images, targets = pictures(batch, 8), token_targets(batch, grid, seed)
    assert torch.equal(mix_pixels(images, draw), images)
    assert torch.equal(mix_token_targets(targets, draw, 8).dense(), targets.dense())
    labels = one_hot_targets(torch.arange(batch), CLASSES, 0.0)
    own = 1 - draw.token_box.mask().float().mean()
    expected = own * labels.dense() + (1 - own) * labels.dense().flip(0)
    torch.testing.assert_close(mix_class_target(labels, draw).dense(), expected)


def test_mixing_does_not_write_into_the_photographs() -> None:
    images = pictures(3, 8)
    before = images.clone()
    mix_pixels(images, MixDraw(pixel_box=MixBox((0, 4), (0, 8), (8, 8))))
    mix_pixels(images, MixDraw(blend=0.3))
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("none", {}, {"nothing": 1.0}),
        ("mixtoken", {"mix_probability": 0.3}, {"token": 0.3, "nothing": 0.7}),
        ("mixtoken_mixup", {}, {"token+blend": 1.0}),
        ("cutmix_mixup", {}, {"pixel": 0.5, "blend": 0.5}),
    ],
)
def test_what_is_mixed_how_often(kind: str, changes: dict[str, Any], expected: dict[str, float]) -> None:
    counts: dict[str, int] = {}
    for seed in range(2000):
        draw = draw_mix(RECIPE | {"mix": kind} | changes, (14, 14), 224, random.Random(seed))
        parts = {"token": draw.token_box, "pixel": draw.pixel_box, "blend": draw.blend}
        name = "+".join(part for part, value in parts.items() if value is not None) or "nothing"
        counts[name] = counts.get(name, 0) + 1
    assert {name: count / 2000 for name, count in counts.items()} == pytest.approx(expected, abs=0.04)
