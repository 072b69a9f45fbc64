"""The fast way from a photograph's bytes to what a network sees: uint8 pixels, one normalisation a batch.

Called by everything that runs an annotator, and by the training's loader. Plain JPEGs are decoded by torchvision, pixel for
pixel as Pillow decodes them; whatever else, and whatever torchvision refuses, goes through `images.decode_image`, whose reasons
are the ones recorded. Bilinear and bicubic, the filters that timm trains with, are torch's antialiased uint8 kernels: at most 2
of 255 grey levels from Pillow's passes over width, then height, the mean below 0.05, whatever the picture. That was Pillow's
only order until 13, and so that of published weights; Pillow 13 takes the height first where it shrinks much more than the width
(pull request 9549), which moves real photographs by a mean of 0.25. Decoding and resizing hold no Python lock. bench/decode.py
measures it.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize as resize_tensor

from .images import FIRST_TURNED, decode_image, resize, resize_and_centre_crop

TORCH_INTERPOLATION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def read_view(encoded: bytes, image_px: int, view: str, interpolation: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """Decodes a photograph and resizes the part of it that an annotator sees.

    Args:
        encoded: the file's bytes, any format that Pillow reads.
        image_px: side of the square.
        view: `squash` (the whole photograph) or `centre_crop` (its largest centred square).
        interpolation: timm's name, antialiased.

    Returns:
        uint8 (3, image_px, image_px), RGB, channels last in memory unless EXIF turned them; height and width of the upright
        photograph.

    Raises:
        UnreadableImageError: as `decode_image`.
    """
    stored, orientation = _decode(encoded)
    on_its_side = orientation >= FIRST_TURNED
    height, width = reversed(stored.shape[1:]) if on_its_side else stored.shape[1:]
    if view == "squash" and interpolation in TORCH_INTERPOLATION:
        filter_of_torch = TORCH_INTERPOLATION[interpolation]
        if on_its_side:  # the upright width is the stored height, and comes first
            stored = resize_tensor(stored, [image_px, stored.shape[2]], filter_of_torch, antialias=True)
        # turning the square gives the same pixels as turning the photograph, for a fraction of the time and memory
        square = _turned(resize_tensor(stored, [image_px, image_px], filter_of_torch, antialias=True), orientation)
    else:  # torch has no other filters, and no box whose edges see the pixels beyond them
        picture = Image.fromarray(_turned(stored, orientation).permute(1, 2, 0).numpy())
        if view == "squash":
            picture = resize(picture, image_px, image_px, interpolation)
        else:
            picture = resize_and_centre_crop(picture, image_px, 1.0, interpolation)
        square = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return square, (height, width)


def decode_upright(encoded: bytes) -> torch.Tensor:
    """Decodes a photograph and applies its EXIF orientation: `images.decode_image` as a tensor, the same pixels sooner.

    Returns:
        uint8 (3, height, width), RGB, channels last in memory unless EXIF turned them.

    Raises:
        UnreadableImageError: as `decode_image`.
    """
    return _turned(*_decode(encoded))


def shrink(pixels: torch.Tensor, short_side_px: int) -> torch.Tensor:
    """Resizes a photograph, uint8 (3, height, width), to a shorter side of that length; a smaller one stays as it is."""
    height, width = pixels.shape[1:]
    factor = short_side_px / min(height, width)
    if factor >= 1:
        return pixels
    size = [round(height * factor), round(width * factor)]
    shrunk: torch.Tensor = resize_tensor(pixels, size, InterpolationMode.BICUBIC, antialias=True)
    return shrunk


def _decode(encoded: bytes) -> tuple[torch.Tensor, int]:
    """Pixels, uint8 (3, height, width), channels last in memory, and the EXIF orientation that is still to be applied."""
    orientation = _orientation_of_plain_jpeg(encoded)
    if orientation is not None:
        try:
            return decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB), orientation
        except RuntimeError:
            pass  # Pillow has the last word, and the reason
    picture = decode_image(encoded)
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1), 1


def _orientation_of_plain_jpeg(encoded: bytes) -> int | None:
    """EXIF orientation of a grey or three-channel JPEG, read from its header; None for all else.

    Opening also refuses decompression bombs, before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as header:
            if header.format != "JPEG" or header.mode not in ("L", "RGB"):
                return None
            orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - decode_image meets the same and gives the reason
        return None
    return orientation if orientation in range(1, 9) else 1


def _turned(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Applies an EXIF orientation, 1 to 8."""
    if orientation >= FIRST_TURNED:
        pixels = pixels.transpose(1, 2)
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels


def normalise(
    images: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Scales a batch to [0, 1] and normalises, in one pass over the pixels.

    Args:
        images: uint8 (batch, 3, height, width), on any device.
        mean, std: per channel, of pixels in [0, 1].
        memory_format: of the result; that of the images costs least.

    Returns:
        float32 of the same shape.
    """
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    factor = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    scaled = images.to(torch.float32, memory_format=memory_format)
    return torch.addcmul(offset.view(3, 1, 1), scaled, factor.view(3, 1, 1), out=scaled)
