"""The fast way to an annotator's view against the reference, Pillow: formats, orientations, filters, damage."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tokenlabel.data import pixels
from tokenlabel.data.images import UnreadableImageError, decode_image, resize, resize_and_centre_crop, to_tensor
from tokenlabel.data.pixels import decode_upright, normalise, read_view, shrink
from tokenlabel.demo.photographs import find_photographs

PX = 96
TOLERANCE = 2  # grey levels of 255, of torch's resize against Pillow's; the mean stays below MEAN_TOLERANCE
MEAN_TOLERANCE = 0.05


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    with Image.open(find_photographs()[0][1]) as opened:
        return opened.convert("RGB").resize((250, 187))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def reference(
    encoded: bytes, image_px: int = PX, view: str = "squash", filter_name: str = "bicubic"
) -> NDArray[np.int64]:
    picture = decode_image(encoded)
    if (
        view == "squash"
    ):  # width, then height, which one call of Pillow 13 takes the other way round for some tall pictures
        square = resize(resize(picture, image_px, picture.height, filter_name), image_px, image_px, filter_name)
    else:
        square = resize_and_centre_crop(picture, image_px, 1.0, filter_name)
    return np.asarray(square).astype(np.int64)


def check(encoded: bytes, image_px: int = PX, view: str = "squash", filter_name: str = "bicubic") -> None:
    found, size = read_view(encoded, image_px, view, filter_name)
    picture = decode_image(encoded)
    assert (found.shape, found.dtype) == ((3, image_px, image_px), torch.uint8)
    assert size == (picture.height, picture.width)
    difference = np.abs(
        found.permute(1, 2, 0).numpy().astype(np.int64) - reference(encoded, image_px, view, filter_name)
    )
    assert difference.max() <= TOLERANCE
    assert difference.mean() < MEAN_TOLERANCE


def grey16(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def with_alpha(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture


def palette(picture: Image.Image) -> Image.Image:
    return picture.quantize(64)


def ycck(picture: Image.Image) -> bytes:
    """Four channels whose Adobe marker says that the first three are YCbCr."""
    encoded = bytearray(encode(picture.convert("CMYK"), "JPEG"))
    encoded[encoded.index(b"Adobe") + 11] = 2
    return bytes(encoded)


def png16(picture: Image.Image) -> bytes:
    """Pillow writes no 16-bit RGB."""
    levels = np.asarray(picture).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *picture.size, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""
    }  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda p: encode(p, "JPEG", quality=90),
    "JPEG, progressive": lambda p: encode(p, "JPEG", progressive=True),
    "JPEG, 4:4:4": lambda p: encode(p, "JPEG", subsampling=0),
    "JPEG, 4:2:2": lambda p: encode(p, "JPEG", subsampling=1),
    "JPEG, stored as RGB": lambda p: encode(p, "JPEG", keep_rgb=True),
    "JPEG, greyscale": lambda p: encode(p.convert("L"), "JPEG"),
    "JPEG, CMYK": lambda p: encode(p.convert("CMYK"), "JPEG"),
    "JPEG, YCCK": lambda p: ycck(p),
    "JPEG, bytes behind its end": lambda p: encode(p, "JPEG") + b"trailing" * 40,
    "MPO": lambda p: encode(p, "MPO", save_all=True, append_images=[p.transpose(Image.Transpose.ROTATE_180)]),
    "PNG": lambda p: encode(p, "PNG"),
    "PNG, palette": lambda p: encode(palette(p), "PNG"),
    "PNG, palette with transparency": lambda p: encode(palette(p), "PNG", transparency=3),
    "PNG, alpha": lambda p: encode(with_alpha(p), "PNG"),
    "PNG, grey with alpha": lambda p: encode(with_alpha(p).convert("LA"), "PNG"),
    "PNG, 16 bit": lambda p: encode(grey16(p), "PNG"),
    "PNG, 16 bit RGB": lambda p: png16(p),
    "PNG, 1 bit": lambda p: encode(p.convert("1"), "PNG"),
    "WebP": lambda p: encode(p, "WEBP", quality=80),
    "WebP, lossless with alpha": lambda p: encode(with_alpha(p), "WEBP", lossless=True),
    "WebP, animated": lambda p: encode(p, "WEBP", save_all=True, append_images=[p.convert("L").convert("RGB")]),
    "GIF": lambda p: encode(palette(p), "GIF"),
    "BMP": lambda p: encode(p, "BMP"),
    "TIFF": lambda p: encode(p, "TIFF"),
    "TIFF, CMYK": lambda p: encode(p.convert("CMYK"), "TIFF"),
    "TIFF, 16 bit": lambda p: encode(grey16(p), "TIFF"),
    "TIFF, several pages": lambda p: encode(p, "TIFF", save_all=True, append_images=[p.convert("L")]),
    "PPM": lambda p: encode(p, "PPM"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_what_pillow_gives(name: str, photograph: Image.Image) -> None:
    check(FORMATS[name](photograph))


def test_sixteen_bits_become_eight_and_not_white(photograph: Image.Image) -> None:
    found, _ = read_view(encode(grey16(photograph), "PNG"), PX, "squash", "bicubic")
    expected = reference(encode(photograph.convert("L"), "PNG"))
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_applied(kind: str, orientation: int, photograph: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photograph, kind, exif=exif)
    check(encoded)
    check(encoded, view="centre_crop")
    upright = encode(decode_image(encoded), "PNG")
    for image_px in (64, PX, 300):  # turned before or after: the very same pixels
        found, expected = (read_view(file, image_px, "squash", "bicubic")[0] for file in (encoded, upright))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_whole_photographs_are_upright_and_pillows_pixel_for_pixel(kind: str, photograph: Image.Image) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        encoded = encode(photograph, kind, exif=exif)
        found = decode_upright(encoded).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, np.asarray(decode_image(encoded)))


def test_shrinking_keeps_the_shape_and_never_enlarges(photograph: Image.Image) -> None:
    upright = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
    assert shrink(upright, 64).shape == (3, 64, round(250 * 64 / 187))
    assert shrink(upright.transpose(1, 2), 64).shape == (3, round(250 * 64 / 187), 64)
    assert shrink(upright, 187) is upright
    assert shrink(upright, 500) is upright


def test_an_orientation_that_is_none_is_ignored(photograph: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    check(encode(photograph, "JPEG", exif=exif))


@pytest.mark.parametrize("filter_name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("view", ["squash", "centre_crop"])
def test_every_filter_and_view(filter_name: str, view: str, photograph: Image.Image) -> None:
    check(encode(photograph, "JPEG"), view=view, filter_name=filter_name)


@given(
    width=st.integers(1, 400), height=st.integers(1, 400), image_px=st.integers(16, 256), grey=st.booleans(),
    filter_name=st.sampled_from(["bilinear", "bicubic"]), view=st.sampled_from(["squash", "centre_crop"]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_size_up_and_down(
    width: int, height: int, image_px: int, grey: bool, filter_name: str, view: str, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    encoded = encode(picture.convert("L") if grey else picture, "JPEG", quality=95)
    found, size = read_view(encoded, image_px, view, filter_name)
    assert size == (height, width)
    expected = reference(encoded, image_px, view, filter_name)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(np.int64) - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("width", "height", "image_px"),
    [(375, 500, 288), (500, 375, 288), (33, 71, 64), (64, 64, 576), (768, 1024, 288), (20, 9000, 96), (9000, 20, 96)],
)
@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_the_tolerance_holds_at_full_contrast(width: int, height: int, image_px: int, filter_name: str) -> None:
    """Black and white at random: the filters overshoot at every pixel, so that the order of the passes shows."""
    noise = np.random.default_rng(0).integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    check(encode(Image.fromarray(noise), "PNG"), image_px, filter_name=filter_name)


@pytest.mark.parametrize("size", [(375, 500), (500, 375)])
def test_one_call_of_pillow_is_near_for_photographs(size: tuple[int, int]) -> None:
    with Image.open(find_photographs()[0][1]) as opened:
        encoded = encode(opened.convert("RGB").resize(size), "JPEG", quality=90)
    for image_px in (224, 288, 576):
        found, _ = read_view(encoded, image_px, "squash", "bicubic")
        one_call = np.asarray(resize(decode_image(encoded), image_px, image_px, "bicubic")).astype(np.int64)
        assert np.abs(found.permute(1, 2, 0).numpy() - one_call).mean() < 0.4


def test_threads_leave_the_process_its_warnings(photograph: Image.Image) -> None:
    encoded = encode(palette(photograph), "PNG", transparency=bytes(range(64)))  # Pillow warns of such palettes
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: read_view(encoded, 32, "squash", "bicubic")[1], range(300)))
        assert warnings.filters == before


def test_plain_jpegs_decode_pixel_for_pixel_as_pillow(photograph: Image.Image) -> None:
    for name in ("JPEG", "JPEG, progressive", "JPEG, 4:4:4", "JPEG, 4:2:2", "JPEG, stored as RGB", "JPEG, greyscale"):
        encoded = FORMATS[name](photograph)
        assert pixels._orientation_of_plain_jpeg(encoded) == 1
        found, _ = pixels._decode(encoded)
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(decode_image(encoded)))


def reason_against(encoded: bytes) -> str:
    try:
        decode_image(encoded)
    except UnreadableImageError as error:
        return str(error)
    return ""


def test_damage_has_the_outcome_that_it_has_with_pillow(
    photograph: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    """Truncated at any length, bits flipped anywhere: both refuse with the same reason, or both give the same pixels."""
    rng = random.Random(7)
    small = photograph.resize((64, 48))
    files = [encode(small, "JPEG"), encode(small, "JPEG", progressive=True), encode(small.convert("L"), "JPEG")]
    damaged = [file[: rng.randrange(len(file))] for file in files for _ in range(60)]
    for file in files:
        for _ in range(150):
            spoiled = bytearray(file)
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
            damaged.append(bytes(spoiled))
    refused = 0
    for encoded in damaged:
        reason = reason_against(encoded)
        if reason:
            with pytest.raises(UnreadableImageError) as caught:
                read_view(encoded, 32, "squash", "bicubic")
            assert str(caught.value) == reason
            refused += 1
            continue
        expected = reference(encoded, 32)
        found, _ = read_view(encoded, 32, "squash", "bicubic")
        assert np.abs(found.permute(1, 2, 0).numpy().astype(np.int64) - expected).max() <= TOLERANCE
    assert 180 <= refused < len(damaged)
    capfd.readouterr()  # libjpeg tells standard error of damage that it could pass over


UNREADABLE = {
    "no bytes": (b"", "cannot identify"),
    "a web page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "cannot identify"),
    "zeros": (bytes(5000), "cannot identify"),
    "a JPEG's head only": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "."),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "HEIC is not read; convert"),
    "floating point": (encode(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_photograph_is_refused_with_the_reason(name: str) -> None:
    encoded, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImageError, match=reason):
        read_view(encoded, PX, "squash", "bicubic")


def test_a_wrong_extension_does_not_matter_and_extreme_shapes_do_not_break() -> None:
    for size in ((1, 1), (30000, 1), (30000, 20), (1, 5000)):
        check(encode(Image.new("RGB", size, (10, 200, 30)), "JPEG"), view="squash")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(kind: str) -> None:
    if kind == "JPEG":  # 65,000 x 65,000 said in the header of a small file
        encoded = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
        frame = encoded.index(b"\xff\xc0")
        encoded[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
        bomb = bytes(encoded)
    else:
        bomb = encode(Image.new("P" if kind == "GIF" else "1", (20000, 20000)), kind)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_view(bomb, PX, "squash", "bicubic")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_normalising_equals_the_formula(photograph: Image.Image) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.from_numpy(np.stack([np.asarray(photograph)] * 2)).permute(0, 3, 1, 2)
    found = normalise(images, mean, std)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found[1], to_tensor(photograph, mean, std), atol=1e-6, rtol=0)
