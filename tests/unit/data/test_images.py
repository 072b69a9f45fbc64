"""One decoder: upright, RGB, and a reason for what cannot be decoded."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tokenlabel.data.images import UnreadableImageError, decode_image, resize_and_centre_crop, to_tensor, upright_size


def encoded(picture: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, file_format, **options)
    return out.getvalue()


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 20, 20))  # left half blue
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn 90 degrees clockwise to see it upright
    upright = decode_image(encoded(picture, exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200  # the stored left is the top
    assert upright.getpixel((10, 35))[0] > 200


@pytest.mark.parametrize("orientation", [0, 1, 4, 5, 8, 9, 77])
def test_the_size_from_the_header_is_that_of_the_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = encoded(Image.new("RGB", (40, 20)), exif=exif)
    picture = decode_image(photograph)
    assert upright_size(photograph) == (picture.height, picture.width)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(Image.new(mode, (5, 4)), file_format)).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white() -> None:
    levels = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    seen = np.array(decode_image(encoded(Image.fromarray(levels), "PNG")))
    assert seen[0, 0, 0] == 0
    assert seen[-1, -1, 0] == 255
    assert 120 < seen.mean() < 135


def test_the_reason_is_the_same_every_time() -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(b"not an image" * 3)
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "0x" not in reasons.pop()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b"not an image", lambda b: b[: len(b) // 2], lambda b: b[:20]],
    ids=["empty", "text", "half", "header only"],
)
def test_damaged_bytes_give_a_short_reason(damage: object) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(damage(encoded(noise)))  # type: ignore[operator]
    assert 5 < len(str(caught.value)) <= 200


def test_centre_crop_takes_the_centre() -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, 20:80] = 255  # the central square is white
    square = resize_and_centre_crop(Image.fromarray(pixels), 30, 1.0, "bilinear")
    assert square.size == (30, 30)
    assert np.array(square).min() > 200
    assert np.array(resize_and_centre_crop(Image.fromarray(pixels[:, :, :]), 30, 0.5, "bilinear")).min() == 255


def test_to_tensor_normalises_channels() -> None:
    tensor = to_tensor(Image.new("RGB", (2, 3), (255, 0, 127)), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert tensor.shape == (3, 3, 2)
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([1.0, -2.0, (127 / 255 - 0.5) / 0.5]))
