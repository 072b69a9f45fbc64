"""Where the augmentation says it looked is where the pixels come from."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from tokenlabel.core.config import GEOMETRIC_OPERATIONS, PIXEL_OPERATIONS, load_config
from tokenlabel.train.augment import Augmentation, apply_operation, geometric_affine, seeded

GREY = (128, 128, 128)


def recipe(raw: dict, **changes: object) -> dict:
    return load_config(raw).recipes["released_code"].model_dump(mode="json") | changes


def blob_centre(pixels: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y), normalised, of the bright blob in a grey picture."""
    weight = np.clip(pixels.astype(float).max(-1) - 200, 0, None)
    assert weight.sum() > 0
    rows, cols = np.indices(weight.shape)
    side = weight.shape[0]
    return np.array([(weight * (cols + 0.5)).sum(), (weight * (rows + 0.5)).sum()]) / weight.sum() / side


def with_blob(x: float, y: float, side: int = 200, radius: int = 8) -> Image.Image:
    pixels = np.full((side, side, 3), 128, np.uint8)
    rows, cols = np.indices((side, side))
    pixels[(cols + 0.5 - x * side) ** 2 + (rows + 0.5 - y * side) ** 2 <= radius**2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "amount"),
    [("Rotate", 25.0), ("Rotate", -30.0), ("ShearX", 0.3), ("ShearX", -0.2), ("ShearY", 0.25), ("TranslateXRel", 0.2),
     ("TranslateXRel", -0.3), ("TranslateYRel", 0.15)],
)  # fmt: skip
def test_a_geometric_operations_map_leads_back_to_the_pixels_before(name: str, amount: float) -> None:
    before = np.array([0.4, 0.6])
    picture = with_blob(*before)
    changed, affine = apply_operation(picture, name, (amount,), GREY, Image.Resampling.BILINEAR)
    after = blob_centre(np.array(changed))
    assert np.abs(after - before).max() > 0.01  # the operation did something
    np.testing.assert_allclose((affine @ [*after, 1.0])[:2], before, atol=0.004)


def test_every_operation_of_the_recipe_is_one_of_timms() -> None:
    assert set(GEOMETRIC_OPERATIONS) | set(PIXEL_OPERATIONS) == set(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", PIXEL_OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 10])
def test_pixel_operations_work_at_every_magnitude_and_leave_the_geometry_alone(name: str, magnitude: float) -> None:
    to_arguments = auto_augment.LEVEL_TO_ARG[name]
    arguments = to_arguments(magnitude, {}) if to_arguments else ()
    _, affine = apply_operation(with_blob(0.3, 0.3), name, arguments, GREY, Image.Resampling.BILINEAR)
    assert (affine == np.eye(3)).all()


def test_the_whole_chain_of_crop_flip_and_operations_composes(raw_config: dict) -> None:
    """A blob seen in the view lies, through the view's map, where it was drawn in the photograph."""
    augmentation = Augmentation(
        recipe(
            raw_config, crop_scale=[0.4, 1.0], randaugment_operations=list(GEOMETRIC_OPERATIONS), randaugment_count=3,
            erasing_probability=0.0,
        ),
        160, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0),
    )  # fmt: skip
    width, height = 300, 200  # not square: a mixed-up axis shows
    checked = 0
    for seed in range(40):
        x, y = random.Random(seed).uniform(0.35, 0.65), random.Random(seed + 99).uniform(0.35, 0.65)
        pixels = np.full((height, width, 3), 128, np.uint8)
        rows, cols = np.indices((height, width))
        pixels[(cols + 0.5 - x * width) ** 2 + (rows + 0.5 - y * height) ** 2 <= 36] = 255
        view = augmentation(Image.fromarray(pixels), seed)
        seen = (view.image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        if (seen.max(-1) > 200).sum() < 40:
            continue  # the crop does not show the blob
        centre = blob_centre(seen)
        if np.abs(centre - 0.5).max() > 0.42:
            continue  # the border cuts the blob
        np.testing.assert_allclose(view.affine.numpy() @ [*centre, 1.0], [x, y], atol=0.02)
        checked += 1
    assert checked >= 20


def test_equal_seeds_give_equal_views_and_leave_the_global_generators_alone(raw_config: dict) -> None:
    augmentation = Augmentation(recipe(raw_config, erasing_probability=1.0), 64, (0.5,) * 3, (0.5,) * 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), torch.rand(1)
    random.seed(5)
    torch.manual_seed(5)
    first = augmentation(noise, 1)
    assert (random.random(), torch.rand(1)) == expected
    random.random()
    second = augmentation(noise, 1)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.affine, second.affine)
    assert not torch.equal(first.image, augmentation(noise, 2).image)


def test_seeded_restores_after_an_error() -> None:
    random.seed(1)
    state = random.getstate()
    with pytest.raises(RuntimeError), seeded(3):
        random.random()
        raise RuntimeError
    assert random.getstate() == state


def test_rotation_by_ninety_degrees_is_exact() -> None:
    affine = geometric_affine("Rotate", 90.0)
    np.testing.assert_allclose(affine @ [0.0, 0.0, 1.0], [1.0, 0.0, 1.0], atol=1e-12)


def test_released_geometry_swaps_the_crop_and_mirrors_the_map_but_not_the_pixels(raw_config: dict) -> None:
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    changes = {"randaugment_count": 0, "erasing_probability": 0.0, "flip_probability": 0.5}
    flips = set()
    for seed in range(8):
        exact, released = (
            Augmentation(recipe(raw_config, geometry=geometry, **changes), 32, (0.5,) * 3, (0.5,) * 3)(picture, seed)
            for geometry in ("exact", "released")
        )
        assert torch.equal(exact.image, released.image)
        (x, _, x0), (_, y, y0) = exact.affine.double().numpy()
        flips.add(x < 0)
        # mirrored: a crop of the mirrored photograph, then the mirrored map
        expected = [[-y, 0, 1 - y0], [0, -x, 1 - x0]] if x < 0 else [[y, 0, y0], [0, x, x0]]
        np.testing.assert_allclose(released.affine.numpy(), expected, atol=1e-6)
    assert flips == {True, False}


def test_released_geometry_still_follows_the_operations(raw_config: dict) -> None:
    changes = {"randaugment_operations": ["Rotate"], "randaugment_count": 1, "flip_probability": 0.0}
    turned = 0
    for seed in range(6):
        exact, released = (
            Augmentation(recipe(raw_config, geometry=geometry, **changes), 32, (0.5,) * 3, (0.5,) * 3)(
                Image.new("RGB", (90, 60)), seed
            ).affine.double().numpy()
            for geometry in ("exact", "released")
        )  # fmt: skip
        turned += abs(exact[0, 1]) > 0.01
        crop_x, crop_y = np.hypot(*released[0, :2]), np.hypot(*released[1, :2])
        np.testing.assert_allclose([crop_y, crop_x], [np.hypot(*exact[0, :2]), np.hypot(*exact[1, :2])], rtol=1e-5)
    assert turned >= 2
