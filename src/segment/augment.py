"""Augmentation of a scene: a random scale, a square of it, a flip, and colours; the mask goes through the same geometry.

Drawing and doing are apart: draws derive from one seed per (run, pass, scene) and from the mask, and the same pixels come out of
them in a loader process or on a GPU. A square is cut out before it is resized, in the photograph's own pixels, so that a large
scale costs no more than a small one; the scale is the drawn one in both directions. Called by the batches. Source: section 4.4,
which follows Swin's settings in mmsegmentation; it differs in antialiasing, and in colours, which are torchvision's operations
(brightness multiplies and does not add, contrast keeps the mean grey, hue turns by 18 degrees and not by 18 of 180 steps).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as torchvision_functional

from ..data.scenes import IGNORED, Scene

RETRIES = 10  # at a square that no class fills; mmsegmentation's
DISTORTION_PROBABILITY = 0.5  # of each change of colours; SSD's, as all of the next
BRIGHTNESS, CONTRAST, SATURATION = (1 - 32 / 255, 1 + 32 / 255), (0.5, 1.5), (0.5, 1.5)  # factors
HUE = (-18 / 360, 18 / 360)  # turns
_COUNTED_PX = 256  # a class's share of a square is counted on about so many rows and columns
Box = tuple[int, int, int, int]  # top, left, height, width in px


@dataclass(frozen=True)
class SceneDraw:
    """What happens to one scene.

    Attributes:
        box: of the scene.
        factor: its pixels become so many, in both directions.
        size: height and width of the resized box, at most the crop's side; the rest of the square is filled.
        flipped: left and right exchanged.
        colours: names and amounts of what happens to the colours, in order.
    """

    box: Box
    factor: float
    size: tuple[int, int]
    flipped: bool
    colours: tuple[tuple[str, float], ...]


class SceneAugmentation:
    """A recipe's augmentation.

    Args:
        recipe: crop_px, short_side_px, scale_range, max_class_share, flip_probability, photometric; the others do not matter here.
        mean, std: of the normalisation that the model asks for.

    Attributes:
        crop_px: side of the square.
        mean, std: as given.
        fill: grey levels of what a small scene leaves of the square: the mean colour, 0 once normalised.
    """

    def __init__(self, recipe: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._recipe = recipe
        self.crop_px: int = recipe["crop_px"]
        self.mean, self.std = mean, std
        self.fill = tuple(round(255 * channel) for channel in mean)

    def draw(self, mask: Tensor, seed: int) -> SceneDraw:
        """Draws what happens to a scene.

        Args:
            mask: int16 (height, width), of the whole scene; a square is drawn again where one class fills too much of it.
            seed: equal seeds give equal draws.
        """
        rng, recipe = random.Random(seed), self._recipe
        height, width = mask.shape
        short_px = recipe["short_side_px"] or min(height, width)
        factor = rng.uniform(*recipe["scale_range"]) * short_px / min(height, width)
        # no side may vanish; a billionth more, so that what is cut out for the crop's side never falls short of it by rounding
        factor = max(factor, 1 / min(height, width)) * (1 + 1e-9)
        box_height, box_width = (min(side, math.ceil(self.crop_px / factor)) for side in (height, width))
        for _ in range(1 + RETRIES):
            top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
            if (box_height, box_width) == (height, width):
                break
            if self._is_varied(mask[top : top + box_height, left : left + box_width]):
                break
        return SceneDraw(
            box=(top, left, box_height, box_width),
            factor=factor,
            size=(
                min(self.crop_px, math.floor(box_height * factor)),
                min(self.crop_px, math.floor(box_width * factor)),
            ),
            flipped=rng.random() < recipe["flip_probability"],
            colours=draw_colours(rng) if recipe["photometric"] else (),
        )

    def _is_varied(self, mask: Tensor) -> bool:
        """Whether no class has more than its share of the pixels that are not ignored."""
        rows, cols = (max(1, side // _COUNTED_PX) for side in mask.shape)
        counts = np.bincount(mask.numpy()[::rows, ::cols].ravel() - IGNORED)[1:]
        return bool(counts.sum()) and bool(counts.max() <= self._recipe["max_class_share"] * counts.sum())

    def square(self, scene: Scene, draw: SceneDraw) -> tuple[Tensor, Tensor]:
        """Does what was drawn, but for the colours.

        Args:
            scene: in its own pixels.
            draw: of this scene.

        Returns:
            uint8 (3, crop_px, crop_px), filled with the mean colour beyond `draw.size`, and int16 (crop_px, crop_px), IGNORED
            there.
        """
        top, left, box_height, box_width = draw.box
        rows, cols = draw.size
        box = scene.image[None, :, top : top + box_height, left : left + box_width]
        pixels = functional.interpolate(box, scale_factor=draw.factor, mode="bilinear", antialias=True)[
            0, :, :rows, :cols
        ]
        # numpy takes rows and columns of 16 bits in a quarter of torch's time
        boxed = scene.mask.numpy()[top : top + box_height, left : left + box_width]
        classes = torch.from_numpy(boxed[_nearest(rows, draw.factor)][:, _nearest(cols, draw.factor)])
        if draw.flipped:
            pixels, classes = pixels.flip(-1), classes.flip(-1)
        image = torch.empty(3, self.crop_px, self.crop_px, dtype=torch.uint8)
        mask = torch.full((self.crop_px, self.crop_px), IGNORED, dtype=torch.int16)
        if draw.size != mask.shape:
            image[:] = torch.tensor(self.fill, dtype=torch.uint8).view(3, 1, 1)
        image[:, :rows, :cols], mask[:rows, :cols] = pixels, classes
        return image, mask

    def recolour(self, image: Tensor, draw: SceneDraw) -> Tensor:
        """Changes the colours of a square, not of what was filled; uint8 (3, crop_px, crop_px), in place, on any device."""
        rows, cols = draw.size
        pixels = image[:, :rows, :cols]
        for name, amount in draw.colours:
            pixels = _RECOLOURING[name](pixels, amount)
        if draw.colours:
            image[:, :rows, :cols] = pixels
        return image


def draw_colours(rng: random.Random) -> tuple[tuple[str, float], ...]:
    """Brightness, contrast before or after the two others, saturation, hue; each with probability 1/2.

    Source: the law of SSD's photometric distortion as torchvision's RandomPhotometricDistort has it, which draws from torch's
    global generator; channels are not exchanged.
    """
    limits = [("brightness", BRIGHTNESS), ("saturation", SATURATION), ("hue", HUE)]
    limits.insert(rng.choice((1, 3)), ("contrast", CONTRAST))
    return tuple((name, rng.uniform(*between)) for name, between in limits if rng.random() < DISTORTION_PROBABILITY)


_RECOLOURING = {
    "brightness": torchvision_functional.adjust_brightness,
    "contrast": torchvision_functional.adjust_contrast,
    "saturation": torchvision_functional.adjust_saturation,
    "hue": torchvision_functional.adjust_hue,
}


def _nearest(count: int, factor: float) -> NDArray[np.int64]:
    """Of each pixel after resizing, the pixel before that its centre lies in; (count,)."""
    return ((np.arange(count) + 0.5) / factor).astype(np.int64)
