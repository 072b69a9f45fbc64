"""RandAugment's operations against timm's own on the same amounts, and the maps of the geometric ones against what is drawn."""

from __future__ import annotations

import random
import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from timm.data import auto_augment

from tests.unit.train.test_augment import as_tensor, blob_centre
from tokenlabel.core.config import GEOMETRIC_OPERATIONS, PIXEL_OPERATIONS, RandAugmentOperation
from tokenlabel.data.images import RESAMPLING, decode_image
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.train.operations import Operation, apply_operation, draw_amount

GREY = (128, 128, 128)


@pytest.fixture(scope="module")
def squares() -> list[Image.Image]:
    """Real photographs, and pictures that make histograms degenerate."""
    found = [decode_image(path.read_bytes()).resize((96, 96)) for _, path in find_photographs()[:5]]
    return [*found, Image.new("RGB", (96, 96), (7, 7, 7)), Image.linear_gradient("L").resize((96, 96)).convert("RGB")]


def by_timm(picture: Image.Image, name: str, amount: float, resample: Image.Resampling) -> np.ndarray:
    arguments = () if auto_augment.LEVEL_TO_ARG[name] is None else (amount,)
    return np.array(auto_augment.NAME_TO_OP[name](picture, *arguments, fillcolor=GREY, resample=resample)).astype(int)


def ours(picture: Image.Image, name: str, amount: float, interpolation: str = "bilinear") -> np.ndarray:
    changed = apply_operation(as_tensor(picture), Operation(name, amount, interpolation), GREY)
    assert changed.dtype == torch.uint8
    return changed.permute(1, 2, 0).numpy().astype(int)


def with_blob(x: float, y: float, side: int = 200, radius: int = 8) -> Image.Image:
    pixels = np.full((side, side, 3), 128, np.uint8)
    rows, cols = np.indices((side, side))
    pixels[(cols + 0.5 - x * side) ** 2 + (rows + 0.5 - y * side) ** 2 <= radius**2] = 255
    return Image.fromarray(pixels)


def test_every_operation_of_the_recipe_is_one_of_timms() -> None:
    assert set(typing.get_args(RandAugmentOperation)) == set(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", typing.get_args(RandAugmentOperation))
def test_amounts_are_timms(name: str) -> None:
    """At any magnitude the same amounts can be drawn, with either sign; but for timm's 0 bits."""
    to_arguments = auto_augment.LEVEL_TO_ARG[name]
    for magnitude in (0.0, 3.7, 8.2, 9.0, 9.99, 10.0):
        theirs = {round(to_arguments(magnitude, {})[0], 9) for _ in range(40)} if to_arguments else {0.0}
        found = {round(draw_amount(name, magnitude, random.Random(seed)), 9) for seed in range(40)}
        assert found == ({1} if theirs == {0} and name == "PosterizeIncreasing" else theirs)


@pytest.mark.parametrize("name", PIXEL_OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(
    pixels=arrays.arrays(np.uint8, st.tuples(st.integers(3, 24), st.integers(3, 24), st.just(3))),
    magnitude=st.floats(0, 10),
    seed=st.integers(0, 9),
)
def test_pixel_operations_equal_timms_on_random_pictures(
    name: str, pixels: np.ndarray, magnitude: float, seed: int
) -> None:
    amount = draw_amount(name, magnitude, random.Random(seed))
    picture = Image.fromarray(pixels)
    expected = by_timm(picture, name, amount, Image.Resampling.BILINEAR)
    assert np.abs(ours(picture, name, amount) - expected).max() <= 1
    assert (Operation(name, amount, "bilinear").affine == np.eye(3)).all()


@pytest.mark.parametrize("name", PIXEL_OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 4, 9, 10])
def test_pixel_operations_equal_timms_on_photographs(name: str, magnitude: float, squares: list[Image.Image]) -> None:
    for seed, picture in enumerate(squares):
        amount = draw_amount(name, magnitude, random.Random(seed))
        apart = np.abs(ours(picture, name, amount) - by_timm(picture, name, amount, Image.Resampling.BILINEAR))
        assert apart.max() <= 1
        assert apart.mean() < 0.1  # one level is a rounding, not a rule


@pytest.mark.parametrize("name", GEOMETRIC_OPERATIONS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_geometric_operations_move_pixels_as_timms(name: str, interpolation: str, squares: list[Image.Image]) -> None:
    """Bilinear to a rounding; bicubic kernels differ in one parameter. Where fill begins they blend differently."""
    for seed, picture in enumerate(squares[:5]):
        amount = draw_amount(name, 9.0, random.Random(seed))
        expected = by_timm(picture, name, amount, RESAMPLING[interpolation])
        apart = np.abs(ours(picture, name, amount, interpolation) - expected)[2:-2, 2:-2]
        uncovered = by_timm(Image.new("RGB", picture.size), name, amount, Image.Resampling.NEAREST) == GREY[0]
        near_fill = sum(np.roll(uncovered, (i, j), (0, 1)) for i in (-2, 0, 2) for j in (-2, 0, 2)) > 0
        apart = apart[~near_fill[2:-2, 2:-2]]
        assert apart.size > 5000
        assert apart.max() <= 2 if interpolation == "bilinear" else apart.mean() < 1.5


@pytest.mark.parametrize(
    ("name", "amount"),
    [("Rotate", 25.0), ("Rotate", -30.0), ("ShearX", 0.3), ("ShearX", -0.2), ("ShearY", 0.25), ("TranslateXRel", 0.2),
     ("TranslateXRel", -0.3), ("TranslateYRel", 0.15)],
)  # fmt: skip
def test_a_geometric_operations_map_leads_back_to_the_pixels_before(name: str, amount: float) -> None:
    before = np.array([0.4, 0.6])
    after = blob_centre(ours(with_blob(*before), name, amount))
    assert np.abs(after - before).max() > 0.01  # the operation did something
    np.testing.assert_allclose((Operation(name, amount, "bilinear").affine @ [*after, 1.0])[:2], before, atol=0.004)


def test_uncovered_corners_take_the_fill_colour() -> None:
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    changed = apply_operation(pixels, Operation("TranslateXRel", 0.5, "bilinear"), (1, 2, 3))
    assert changed[:, 20, 30].tolist() == [1, 2, 3]
    assert changed[:, 20, 10].tolist() == [0, 0, 0]


def test_rotation_by_ninety_degrees_is_exact() -> None:
    np.testing.assert_allclose(Operation("Rotate", 90.0, "bilinear").affine @ [0, 0, 1.0], [1, 0, 1.0], atol=1e-12)
