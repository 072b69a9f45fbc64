"""The one decoder: bytes to an upright RGB picture, the same for annotator, training and evaluation.

Called by every stage that looks at a photograph. Never guesses: what cannot be decoded whole raises UnreadableImageError.
Alpha is dropped, colour profiles are not applied, of several frames the first is taken, 16 bits become 8: as Pillow's
`convert("RGB")` does, but for 16-bit grey, which that would clip. Floating-point pixels have no known white and are refused.
`pixels` is the fast way to an annotator's view.
"""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..core.errors import UnreadableImageError as UnreadableImageError

# Pillow warns of odd EXIF and palettes; the pixels are what counts here. For the whole process, because threads decode:
# `catch_warnings` in one would restore what another had changed, and leave all warnings of the process off.
warnings.filterwarnings("ignore", module=r"PIL\.")

FIRST_TURNED = 5  # EXIF orientations from here on exchange width and height
_HEIC = re.compile(rb".{4}ftyp(hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_image(encoded: bytes) -> Image.Image:
    """Decodes a photograph and applies its EXIF orientation.

    Args:
        encoded: the file's bytes, any format that Pillow reads.

    Returns:
        an RGB picture (height, width), upright.

    Raises:
        UnreadableImageError: empty, truncated, damaged, of unknown format, or larger than Pillow's bomb limit.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _eight_bits(upright).convert("RGB")
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise almost any type on damaged bytes
        reason = "HEIC is not read; convert the photograph to JPEG or PNG" if _HEIC.match(encoded) else in_words(error)
        raise UnreadableImageError(f"{type(error).__name__}: {reason}"[:200]) from None


def in_words(error: Exception) -> str:
    """Pillow's reason on one line, without the address of the bytes it was given, which differs from run to run."""
    text = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", " the file", str(error))
    return " ".join(text.split()) or type(error).__name__


def upright_size(encoded: bytes) -> tuple[int, int]:
    """Height and width that `decode_image` would give, from the header alone.

    Raises:
        UnreadableImageError: no image format that Pillow knows.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in range(FIRST_TURNED, 9)
            width, height = picture.size
    except Exception as error:  # noqa: BLE001 - as in decode_image
        raise UnreadableImageError(f"{type(error).__name__}: {in_words(error)}"[:200]) from None
    return (width, height) if turned else (height, width)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, which Pillow's own conversion would clip to white."""
    if picture.mode == "F":
        raise ValueError("floating-point grey levels: nothing says which of them is white")
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"grey levels {levels.min()} to {levels.max()} are neither 8 nor 16 bits")
    return Image.fromarray((levels // 257).astype(np.uint8))


def resize(picture: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """Resizes with antialiasing, without keeping the aspect ratio."""
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), RESAMPLING[interpolation])


def centre_square(size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in px of the central square that spans `crop` of the shorter side.

    Args:
        size: width and height in px.
        crop: in (0, 1].
    """
    width, height = size
    side = min(size) * crop
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resize_and_centre_crop(picture: Image.Image, image_px: int, crop: float, interpolation: str) -> Image.Image:
    """Evaluation's view: the central square that spans `crop` of the shorter side, at image_px x image_px.

    Source: the resize-then-crop of timm's validation, done in one resampling.
    """
    return picture.resize((image_px, image_px), RESAMPLING[interpolation], box=centre_square(picture.size, crop))


def to_tensor(picture: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Scales to [0, 1] and normalises.

    Returns:
        float32 (3, height, width).
    """
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous().to(torch.float32)
    return pixels.div_(255.0).sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
