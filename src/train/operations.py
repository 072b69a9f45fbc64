"""RandAugment's operations on uint8 pixels, on the processor or a GPU, each a function of amounts that were drawn before.

Pixel operations equal timm's, which are Pillow's, to one grey level (a property test compares them). Geometric ones sample
the picture through the very map that moves the labels; uncovered corners take the fill colour. Called by `augment`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as torchvision_functional

from ..core.config import GEOMETRIC_OPERATIONS
from ..labels.views import geometric_affine

LARGEST_MAGNITUDE = 10.0  # of timm's scale
# amount at the largest magnitude, which a coin gives its sign: degrees, factors, and shares of the side
_LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_WITHOUT_AMOUNT = ("AutoContrast", "Equalize", "Invert")
_ENHANCEMENT = 0.9  # largest distance of an enhancement's factor from 1, which changes nothing
_ADDED_BELOW = 128  # SolarizeAdd lightens grey levels below this one
_LEVELS = 256


@dataclass(frozen=True)
class Operation:
    """One drawn operation.

    Attributes:
        name: one of core.config's RandAugmentOperation.
        amount: as timm hands it to its function: degrees, factor, share of the side, bits to keep, threshold or summand.
        interpolation: bilinear or bicubic, of geometric ones.
    """

    name: str
    amount: float
    interpolation: str

    @property
    def affine(self) -> NDArray[np.float64]:
        """(3, 3), normalised changed picture -> normalised picture before; the identity for pixel operations."""
        return geometric_affine(self.name, self.amount) if self.name in GEOMETRIC_OPERATIONS else np.eye(3)


def draw_amount(name: str, magnitude: float, rng: random.Random) -> float:
    """The amount of an operation at a magnitude in [0, 10].

    Source: timm's increasing set (inc1). It asks for 0 bits at magnitude 10, a black picture; here one bit stays.
    """
    share = magnitude / LARGEST_MAGNITUDE
    if name in _WITHOUT_AMOUNT:
        return 0.0
    if name == "PosterizeIncreasing":
        return max(1, 4 - int(share * 4))
    if name == "SolarizeIncreasing":
        return _LEVELS - int(share * _LEVELS)
    if name == "SolarizeAdd":
        return int(share * 110)
    sign = rng.choice((-1, 1))
    return sign * share * _LARGEST[name] if name in _LARGEST else 1.0 + sign * share * _ENHANCEMENT


def apply_operation(pixels: Tensor, operation: Operation, fill: tuple[int, ...]) -> Tensor:
    """Applies one operation.

    Args:
        pixels: uint8 (3, height, width), fastest when contiguous.
        operation: what to do.
        fill: grey levels of what geometric operations uncover.

    Returns:
        uint8 of the same shape.
    """
    name, amount = operation.name, operation.amount
    if name in GEOMETRIC_OPERATIONS:
        return _sampled(pixels, operation.affine, fill, operation.interpolation)
    if name == "AutoContrast":
        changed: Tensor = torchvision_functional.autocontrast(pixels)
    elif name == "Equalize":
        changed = torchvision_functional.equalize(pixels)
    elif name == "Invert":
        changed = torchvision_functional.invert(pixels)
    elif name == "PosterizeIncreasing":
        changed = torchvision_functional.posterize(pixels, int(amount))
    elif name == "SolarizeIncreasing":
        # 255 - level from the threshold on, at a fraction of torch.where's time; uint8 holds no threshold of 256
        changed = pixels ^ (pixels > int(amount) - 1).to(torch.uint8) * (_LEVELS - 1) if amount else ~pixels
    elif name == "SolarizeAdd":
        changed = pixels + (pixels < _ADDED_BELOW).to(torch.uint8) * int(amount)
    else:
        changed = _mixed(_degenerate(name, pixels), pixels, amount)
    return changed


def _degenerate(name: str, pixels: Tensor) -> Tensor:
    """The picture that an enhancement's factor 0 gives, as Pillow rounds it; float32, broadcasts with the pixels."""
    if name == "BrightnessIncreasing":
        return torch.zeros((), device=pixels.device)
    if name == "SharpnessIncreasing":
        return _smoothed(pixels)
    red, green, blue = pixels.to(torch.int32)
    grey: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # ITU-R 601 in Pillow's fixed point
    if name == "ContrastIncreasing":
        return grey.sum().div(grey.numel()).add(0.5).floor()
    return grey.to(torch.float32)


def _smoothed(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH filter: the mean of 3 x 3 pixels, the middle one five times; border pixels stay."""
    wide = pixels.to(torch.int16)
    columns = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth = pixels.to(torch.float32)
    smooth[:, 1:-1, 1:-1] = total.to(torch.float32).div_(13.0).add_(0.5).floor_()
    return smooth


def _mixed(degenerate: Tensor, pixels: Tensor, factor: float) -> Tensor:
    """Moves from the degenerate picture (factor 0) to the picture (1) and beyond; clipped and cut to whole levels."""
    moved = pixels.to(torch.float32).sub_(degenerate).mul_(factor).add_(degenerate)
    return _levels(moved)


def _sampled(pixels: Tensor, affine: NDArray[np.float64], fill: tuple[int, ...], interpolation: str) -> Tensor:
    """Looks up each pixel's centre through a normalised map onto the picture before."""
    height, width = pixels.shape[-2:]
    x = torch.arange(0.5, width, device=pixels.device) / width
    y = torch.arange(0.5, height, device=pixels.device)[:, None] / height
    places = torch.empty(1, height, width, 2, device=pixels.device)
    for axis, (by_x, by_y, shift) in enumerate(affine[:2].tolist()):
        # grid_sample counts from -1 to 1 between the outer edges
        torch.add(2 * by_x * x, y * (2 * by_y) + (2 * shift - 1), out=places[0, ..., axis])
    colour = torch.tensor(fill, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
    sampled = functional.grid_sample((pixels - colour)[None], places, interpolation, "zeros", align_corners=False)[0]
    return _levels(sampled.add_(colour + 0.5))


def _levels(values: Tensor) -> Tensor:
    """Cuts and clips float32 to whole grey levels; overwrites its argument."""
    return values.clamp_(0, _LEVELS - 1).to(torch.int16).to(torch.uint8)  # a quarter of the direct way's time
