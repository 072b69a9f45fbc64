"""Augmentation that keeps account of where it looks: a picture and the affine map from it back to the photograph.

Crop, flip and RandAugment's geometric operations compose into one map, so that labels are sampled once, through all of
them. Pixel operations are timm's own functions. Every draw derives from one seed per (run, epoch, photograph).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from ..core.config import GEOMETRIC_OPERATIONS
from ..data.images import RESAMPLING, to_tensor
from ..labels.geometry import Geometry, released_affine
from ..labels.views import geometric_affine

Affine = NDArray[np.float64]  # (3, 3), normalised view -> normalised image, x right, y down
OPERATION_PROBABILITY = 0.5  # of each RandAugment operation; timm's default
TRANSLATE_SHARE = 0.45  # largest translation, of the side; timm's default


@dataclass(frozen=True)
class View:
    """One augmented photograph.

    Attributes:
        image: float32 (3, image_px, image_px), normalised.
        affine: float32 (2, 3), normalised view -> normalised photograph; in the released geometry its crop and flip are
            what the released code takes for it.
    """

    image: torch.Tensor
    affine: torch.Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's and torch's global generators inside the block and restores them after.

    timm and torchvision draw from the global generators; this makes their draws a function of the seed alone.
    """
    python_state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)


class Augmentation:
    """A recipe's augmentation at one resolution."""

    def __init__(self, recipe: dict[str, Any], image_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._recipe = recipe
        self.geometry: Geometry = recipe["geometry"]
        self._image_px = image_px
        self._mean, self._std = mean, std
        self._fill = tuple(round(255 * channel) for channel in mean)
        self._erase = RandomErasing(
            probability=recipe["erasing_probability"], mode=recipe["erasing_mode"], device="cpu"
        )

    def __call__(self, picture: Image.Image, seed: int) -> View:
        """Augments one upright RGB photograph; equal seeds give equal views."""
        with seeded(seed):
            square, affine = self._crop_and_flip(picture)
            square, affine = self._rand_augment(square, affine)
            tensor = self._erase(to_tensor(square, self._mean, self._std))
        return View(tensor, torch.from_numpy(affine[:2]).to(torch.float32))

    def _resampling(self) -> Image.Resampling:
        name = self._recipe["interpolation"]
        if name == "random":
            name = random.choice(("bilinear", "bicubic"))
        return RESAMPLING[name]

    def _crop_and_flip(self, picture: Image.Image) -> tuple[Image.Image, Affine]:
        scale, ratio = list(self._recipe["crop_scale"]), list(self._recipe["crop_ratio"])
        # get_params reads only the size, which an empty tensor view has without a copy of the pixels
        top, left, height, width = RandomResizedCrop.get_params(picture, scale, ratio)
        square = picture.resize(
            (self._image_px, self._image_px), self._resampling(), box=(left, top, left + width, top + height)
        )
        affine = np.array(
            [
                [width / picture.width, 0.0, left / picture.width],
                [0.0, height / picture.height, top / picture.height],
                [0.0, 0.0, 1.0],
            ]
        )
        flipped = random.random() < self._recipe["flip_probability"]
        if flipped:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.geometry == "released":
            (x, _, x0), (_, y, y0) = affine[:2]
            affine[:2] = released_affine(np.array([[x0, y0, x0 + x, y0 + y]]), np.array([flipped]))[0].numpy()
        elif flipped:
            affine = affine @ np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return square, affine

    def _rand_augment(self, square: Image.Image, affine: Affine) -> tuple[Image.Image, Affine]:
        recipe = self._recipe
        settings = {"translate_pct": TRANSLATE_SHARE}
        for name in random.choices(recipe["randaugment_operations"], k=recipe["randaugment_count"]):
            if random.random() > OPERATION_PROBABILITY:
                continue
            magnitude = recipe["randaugment_magnitude"]
            if recipe["randaugment_std"] > 0:
                magnitude = min(max(random.gauss(magnitude, recipe["randaugment_std"]), 0.0), 10.0)
            to_arguments = auto_augment.LEVEL_TO_ARG[name]
            arguments = to_arguments(magnitude, settings) if to_arguments else ()
            square, step = apply_operation(square, name, arguments, self._fill, self._resampling())
            affine = affine @ step
        return square, affine


def apply_operation(
    square: Image.Image, name: str, arguments: tuple[Any, ...], fill: tuple[int, ...], resample: Image.Resampling
) -> tuple[Image.Image, Affine]:
    """Applies one RandAugment operation by timm's function.

    Returns:
        the picture, and the map from it to the picture before, normalised (3, 3); the identity for pixel operations.
    """
    operation = auto_augment.NAME_TO_OP[name]
    if name == "PosterizeIncreasing":
        # timm asks for 0 bits at magnitude 10, a black picture; Pillow 13 refuses that, so one bit stays
        arguments = (max(1, *arguments),)
    changed = operation(square, *arguments, fillcolor=fill, resample=resample)
    return changed, geometric_affine(name, *arguments) if name in GEOMETRIC_OPERATIONS else np.eye(3)
