"""Augmentation that keeps account of where it looks: what is drawn for a photograph, and the affine map back to it.

Crop, flip and RandAugment's geometric operations compose into one map, so that labels are sampled once, through all of
them. Drawing and doing are apart: draws derive from one seed per (run, epoch, photograph) and from the photograph's size,
and the same pixels come out of them in a loader process or on a GPU. Called by the batches.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_functional

from ..data.pixels import TORCH_INTERPOLATION
from ..labels.geometry import Geometry, released_affine
from .operations import LARGEST_MAGNITUDE, Operation, apply_operation, draw_amount

OPERATION_PROBABILITY = 0.5  # of each RandAugment operation; timm's default
ATTEMPTS = 10  # at a box that fits; timm's and torchvision's
ERASED_AREA = (0.02, 1 / 3)  # of the picture; timm's defaults
ERASED_RATIO = (0.3, 1 / 0.3)  # height / width; timm's defaults
INTERPOLATIONS = ("bilinear", "bicubic")

Box = tuple[int, int, int, int]  # top, left, height, width in px


@dataclass(frozen=True)
class Draw:
    """What happens to one photograph.

    Attributes:
        crop: of the photograph.
        interpolation: of its resizing.
        flipped: left and right exchanged.
        operations: RandAugment's, in order.
        erased: of the square, or None.
        noise_seed: of the erased pixels.
        affine: float32 (2, 3), normalised view -> normalised photograph; in the released geometry its crop and flip are
            what the released code takes for it.
    """

    crop: Box
    interpolation: str
    flipped: bool
    operations: tuple[Operation, ...]
    erased: Box | None
    noise_seed: int
    affine: NDArray[np.float32]


class Augmentation:
    """A recipe's augmentation at one resolution.

    Attributes:
        recipe: of the run.
        geometry: exact or released.
        image_px: side of the square.
        mean, std: of the normalisation that the model asks for.
        fill: grey levels of what geometric operations uncover.
    """

    def __init__(self, recipe: dict[str, Any], image_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.recipe = recipe
        self.geometry: Geometry = recipe["geometry"]
        self.image_px = image_px
        self.mean, self.std = mean, std
        self.fill = tuple(round(255 * channel) for channel in mean)

    def draw(self, height: int, width: int, seed: int) -> Draw:
        """Draws what happens to an upright photograph of a size in px; equal seeds give equal draws."""
        rng, recipe = random.Random(seed), self.recipe
        crop = draw_crop(height, width, recipe["crop_scale"], recipe["crop_ratio"], rng)
        interpolation = self._interpolation(rng)
        flipped = rng.random() < recipe["flip_probability"]
        affine = self._affine(crop, flipped, height, width)
        operations = []
        for name in rng.choices(recipe["randaugment_operations"], k=recipe["randaugment_count"]):
            if rng.random() >= OPERATION_PROBABILITY:
                continue
            magnitude = recipe["randaugment_magnitude"]
            if recipe["randaugment_std"] > 0:
                magnitude = min(max(rng.gauss(magnitude, recipe["randaugment_std"]), 0.0), LARGEST_MAGNITUDE)
            operation = Operation(name, draw_amount(name, magnitude, rng), self._interpolation(rng))
            operations.append(operation)
            affine = affine @ operation.affine
        erased = draw_erasure(self.image_px, rng) if rng.random() < recipe["erasing_probability"] else None
        return Draw(
            crop, interpolation, flipped, tuple(operations), erased, rng.getrandbits(62), affine[:2].astype(np.float32)
        )

    def _interpolation(self, rng: random.Random) -> str:
        name: str = self.recipe["interpolation"]
        return rng.choice(INTERPOLATIONS) if name == "random" else name

    def _affine(self, crop: Box, flipped: bool, height: int, width: int) -> NDArray[np.float64]:
        """(3, 3), normalised view -> normalised photograph, of crop and flip; x right, y down."""
        top, left, crop_height, crop_width = crop
        x, y, x0, y0 = crop_width / width, crop_height / height, left / width, top / height
        affine = np.array([[x, 0.0, x0], [0.0, y, y0], [0.0, 0.0, 1.0]])
        if self.geometry == "released":
            affine[:2] = released_affine(np.array([[x0, y0, x0 + x, y0 + y]]), np.array([flipped]))[0].numpy()
        elif flipped:
            affine = affine @ np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return affine

    def square(self, cropped: Tensor, draw: Draw) -> Tensor:
        """Does what was drawn, but for the erasing.

        Args:
            cropped: uint8 (3, height, width), the photograph's pixels inside `draw.crop`, on any device.
            draw: of this photograph.

        Returns:
            uint8 (3, image_px, image_px), contiguous.
        """
        side = [self.image_px, self.image_px]
        pixels: Tensor = torchvision_functional.resize(
            cropped, side, TORCH_INTERPOLATION[draw.interpolation], antialias=True
        )
        if draw.flipped:
            pixels = pixels.flip(-1)
        pixels = pixels.contiguous()  # photographs are decoded channels last; operations are faster on whole channels
        for operation in draw.operations:
            pixels = apply_operation(pixels, operation, self.fill)
        return pixels

    def noise(self, draw: Draw) -> Tensor:
        """What the erased pixels become after normalisation, float32 (3, height, width); drawn by the processor everywhere."""
        assert draw.erased is not None
        shape = (3, *draw.erased[2:])
        if self.recipe["erasing_mode"] == "const":
            return torch.zeros(shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(draw.noise_seed))


def inside(pixels: Tensor, crop: Box) -> Tensor:
    """A view of a box's pixels; (3, height, width)."""
    top, left, height, width = crop
    return pixels[:, top : top + height, left : left + width]


def draw_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> Box:
    """A box of random area and aspect ratio inside a photograph; the largest centred one where none of ten fits.

    Args:
        height, width: of the photograph in px.
        scale: smallest and largest area, of the photograph's.
        ratio: smallest and largest width / height.

    Source: the law of torchvision's RandomResizedCrop, which draws from torch's global generator.
    """
    for _ in range(ATTEMPTS):
        box_height, box_width = _sides(height * width * rng.uniform(*scale), _log_uniform(ratio, rng))
        if 0 < box_width <= width and 0 < box_height <= height:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def draw_erasure(image_px: int, rng: random.Random) -> Box | None:
    """The box that random erasing takes out of a square; None where none of ten fits.

    Source: the law of timm's RandomErasing, which draws from Python's global generator.
    """
    for _ in range(ATTEMPTS):
        width, height = _sides(image_px**2 * rng.uniform(*ERASED_AREA), _log_uniform(ERASED_RATIO, rng))
        if width < image_px and height < image_px:
            return rng.randint(0, image_px - height), rng.randint(0, image_px - width), height, width
    return None


def _log_uniform(limits: tuple[float, float], rng: random.Random) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def _sides(area: float, ratio: float) -> tuple[int, int]:
    """Two sides in px of a box with that area; the second is `ratio` times the first."""
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
