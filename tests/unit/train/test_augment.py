"""Where the augmentation says it looked is where the pixels come from; what it draws follows timm's and torchvision's laws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from tokenlabel.core.config import GEOMETRIC_OPERATIONS, load_config
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.train.augment import Augmentation, draw_crop, draw_erasure, inside


def recipe(raw: dict, **changes: object) -> dict:
    return load_config(raw).recipes["released_code"].model_dump(mode="json") | changes


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def view_of(augmentation: Augmentation, picture: Image.Image, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """The square, uint8, and the map from it to the photograph."""
    draw = augmentation.draw(picture.height, picture.width, seed)
    return augmentation.square(inside(as_tensor(picture), draw.crop), draw), draw.affine


def blob_centre(pixels: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y), normalised, of the bright blob in a grey picture."""
    weight = np.clip(pixels.astype(float).max(-1) - 200, 0, None)
    assert weight.sum() > 0
    rows, cols = np.indices(weight.shape)
    side = weight.shape[0]
    return np.array([(weight * (cols + 0.5)).sum(), (weight * (rows + 0.5)).sum()]) / weight.sum() / side


def test_the_whole_chain_of_crop_flip_and_operations_composes(raw_config: dict) -> None:
    """A blob seen in the view lies, through the view's map, where it was drawn in the photograph."""
    augmentation = Augmentation(
        recipe(
            raw_config, crop_scale=[0.4, 1.0], randaugment_operations=list(GEOMETRIC_OPERATIONS), randaugment_count=3,
            erasing_probability=0.0,
        ),
        160, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0),
    )  # fmt: skip
    width, height = 300, 200  # not square: a mixed-up axis shows
    checked = 0
    for seed in range(40):
        x, y = random.Random(seed).uniform(0.35, 0.65), random.Random(seed + 99).uniform(0.35, 0.65)
        pixels = np.full((height, width, 3), 128, np.uint8)
        rows, cols = np.indices((height, width))
        pixels[(cols + 0.5 - x * width) ** 2 + (rows + 0.5 - y * height) ** 2 <= 36] = 255
        square, affine = view_of(augmentation, Image.fromarray(pixels), seed)
        seen = square.permute(1, 2, 0).numpy()
        if (seen.max(-1) > 200).sum() < 40:
            continue  # the crop does not show the blob
        centre = blob_centre(seen)
        if np.abs(centre - 0.5).max() > 0.42:
            continue  # the border cuts the blob
        np.testing.assert_allclose(affine @ [*centre, 1.0], [x, y], atol=0.02)
        checked += 1
    assert checked >= 20


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_in_float32_as_gpus_do_is_within_a_rounding(raw_config: dict, interpolation: str) -> None:
    """Torch has no uint8 kernel on a GPU, where torchvision resizes in float32; the operations after it are the same."""
    changes = {"interpolation": interpolation, "randaugment_count": 0, "flip_probability": 0.0}
    augmentation = Augmentation(recipe(raw_config, **changes), 96, (0.5,) * 3, (0.5,) * 3)
    pixels = as_tensor(Image.open(find_photographs()[0][1]).convert("RGB"))
    for seed in range(4):
        draw = augmentation.draw(*pixels.shape[1:], seed)
        cropped = inside(pixels, draw.crop)
        in_float = torch.nn.functional.interpolate(
            cropped[None].float(), (96, 96), mode=interpolation, antialias=True, align_corners=False
        )[0]
        apart = (augmentation.square(cropped, draw).float() - in_float.round().clamp(0, 255)).abs()
        assert apart.max() <= 4
        assert apart.mean() < 0.2


def test_equal_seeds_give_equal_views_and_leave_the_global_generators_alone(raw_config: dict) -> None:
    augmentation = Augmentation(recipe(raw_config, erasing_probability=1.0), 64, (0.5,) * 3, (0.5,) * 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))

    def everything(seed: int) -> torch.Tensor:
        draw = augmentation.draw(90, 120, seed)
        return torch.cat([view_of(augmentation, picture, seed)[0].flatten(), augmentation.noise(draw).flatten()])

    random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), torch.rand(1)
    random.seed(5)
    torch.manual_seed(5)
    first = everything(1)
    assert (random.random(), torch.rand(1)) == expected
    assert torch.equal(first, everything(1))
    assert not torch.equal(first[:1000], everything(2)[:1000])


def test_released_geometry_swaps_the_crop_and_mirrors_the_map_but_not_the_pixels(raw_config: dict) -> None:
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    changes = {"randaugment_count": 0, "flip_probability": 0.5}
    flips = set()
    for seed in range(8):
        (exact_pixels, exact), (released_pixels, released) = (
            view_of(
                Augmentation(recipe(raw_config, geometry=name, **changes), 32, (0.5,) * 3, (0.5,) * 3), picture, seed
            )
            for name in ("exact", "released")
        )
        assert torch.equal(exact_pixels, released_pixels)
        (x, _, x0), (_, y, y0) = exact.astype(float)
        flips.add(x < 0)
        # mirrored: a crop of the mirrored photograph, then the mirrored map
        expected = [[-y, 0, 1 - y0], [0, -x, 1 - x0]] if x < 0 else [[y, 0, y0], [0, x, x0]]
        np.testing.assert_allclose(released, expected, atol=1e-6)
    assert flips == {True, False}


def test_released_geometry_still_follows_the_operations(raw_config: dict) -> None:
    changes = {"randaugment_operations": ["Rotate"], "randaugment_count": 1, "flip_probability": 0.0}
    turned = 0
    for seed in range(6):
        exact, released = (
            Augmentation(recipe(raw_config, geometry=name, **changes), 32, (0.5,) * 3, (0.5,) * 3)
            .draw(60, 90, seed)
            .affine
            for name in ("exact", "released")
        )
        turned += abs(exact[0, 1]) > 0.01
        crop_x, crop_y = np.hypot(*released[0, :2]), np.hypot(*released[1, :2])
        np.testing.assert_allclose([crop_y, crop_x], [np.hypot(*exact[0, :2]), np.hypot(*exact[1, :2])], rtol=1e-5)
    assert turned >= 2


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 200), (64, 640)])
def test_crops_follow_torchvisions_law(height: int, width: int) -> None:
    """Each of place and size, and the shape, by a two-sample test; 64 x 640 often falls back to the middle."""
    count, scale, ratio = 2500, [0.08, 1.0], [0.75, 1.3333]
    rng = random.Random(7)
    ours = np.array([draw_crop(height, width, tuple(scale), tuple(ratio), rng) for _ in range(count)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        blank = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(count)])
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    shapes = [boxes[:, 2] / boxes[:, 3] for boxes in (ours, theirs)]
    for name, first, second in [
        *zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True),
        ("shape", *shapes),
    ]:
        assert ks_2samp(first, second).pvalue > 1e-3, name


def test_erased_boxes_follow_timms_law() -> None:
    side, count = 60, 1500
    rng = random.Random(3)
    ours = np.array([draw_erasure(side, rng) for _ in range(count)])
    state = random.getstate()
    random.seed(3)
    erase, theirs = RandomErasing(probability=1.0, device="cpu"), []
    for _ in range(count):
        rows, cols = torch.nonzero(erase(torch.ones(1, side, side))[0] == 0, as_tuple=True)
        theirs.append([rows.min(), cols.min(), rows.max() - rows.min() + 1, cols.max() - cols.min() + 1])
    random.setstate(state)
    for name, first, second in zip(("top", "left", "height", "width"), ours.T, np.array(theirs).T, strict=True):
        assert ks_2samp(first, second).pvalue > 1e-3, name


def test_erased_pixels_are_standard_normal_after_normalisation(raw_config: dict) -> None:
    augmentation = Augmentation(recipe(raw_config, erasing_probability=1.0), 224, (0.5,) * 3, (0.2,) * 3)
    noise = torch.cat([augmentation.noise(augmentation.draw(300, 300, seed)).flatten() for seed in range(8)])
    assert noise.numel() > 50_000
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    constant = Augmentation(
        recipe(raw_config, erasing_probability=1.0, erasing_mode="const"), 224, (0.5,) * 3, (0.2,) * 3
    )
    assert not constant.noise(constant.draw(300, 300, 0)).any()
