"""A mask's ids are what its file says, whatever the kind of PNG; what is no mask, or no list of classes, is refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tokenlabel.core.errors import ConfigError, DataError, UnreadableImageError
from tokenlabel.data.masks import IGNORED, ClassIds, decode_mask, read_class_names

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 2, 2]], np.uint8)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, file_format, **options)
    return out.getvalue()


def png_of_bits(ids: np.ndarray, bits: int, colour_type: int = 0) -> bytes:
    """A PNG by hand: grey (0) of 1 to 16 bits, or indices of a palette (3)."""
    height, width = ids.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in ids]
    else:
        cells = ((ids[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(height, width * bits)
        rows = [np.packbits(row).tobytes() for row in cells]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    palette = chunk(b"PLTE", bytes(range(255, 255 - 3 * 2**bits, -1))) if colour_type == 3 else b""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3)],
    ids=lambda value: str(value),
)  # fmt: skip
@settings(max_examples=15)
@given(data=st.data())
def test_ids_of_every_kind_of_png(bits: int, colour_type: int, data: st.DataObject) -> None:
    ids = data.draw(arrays.arrays(np.uint16, (3, 5), elements=st.integers(0, 2**bits - 1)))
    found = decode_mask(png_of_bits(ids, bits, colour_type))
    assert found.dtype == np.uint16
    assert (found == ids).all()


def test_a_mask_is_turned_as_its_photograph_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert (decode_mask(encoded(Image.fromarray(IDS), exif=exif)) == np.rot90(IDS, -1)).all()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            encoded(Image.fromarray(IDS).convert("RGB")),
            DataError,
            r"has colours \(RGB\), expected one channel of class ids",
        ),
        (encoded(Image.fromarray(IDS).convert("RGBA")), DataError, r"has colours \(RGBA\)"),
        (encoded(Image.fromarray(IDS).convert("LA")), DataError, r"has colours \(LA\)"),
        (encoded(Image.fromarray(IDS), "JPEG"), DataError, r"the mask is JPEG, expected PNG"),
        (encoded(Image.fromarray(IDS))[:-30], UnreadableImageError, "."),
        (b"", UnreadableImageError, r"UnidentifiedImageError: cannot identify image file the file$"),
    ],
    ids=["colours", "colours and alpha", "grey and alpha", "jpeg", "truncated", "empty"],
)
def test_what_is_no_mask_is_refused(content: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decode_mask(content)


def test_ids_become_classes() -> None:
    indices = ClassIds(count=3, first_id=1, ignore_id=0).class_indices(IDS.astype(np.uint16))
    assert indices.dtype == np.int16
    assert (indices == IDS.astype(int) - 1).all()
    assert ClassIds(300, 0, 65535).class_indices(np.array([[299, 65535]], np.uint16)).tolist() == [[299, IGNORED]]


def test_ids_of_no_class_are_named() -> None:
    ids = np.array([[0, 1, 7, 9, 9]], np.uint16)
    with pytest.raises(
        DataError, match=r"stand for no class: 7, 9 \(3 of 5 pixels\).*have ids 0 to 1, ignored is None"
    ):
        ClassIds(2, 0, None).class_indices(ids)
    with pytest.raises(ConfigError, match=r"ignore_id 1 is the id of a class: 2 classes have ids 0 to 1"):
        ClassIds(2, 0, 1)
    for count, first_id, ignore_id, said in (
        ("three", 0, None, r"num_classes is 'three'; expected a whole number from 1 to 32767"), (0, 0, None, "num_classes is 0"),
        (2, -1, None, "first_id is -1"), (2, 0, 70000, "ignore_id is 70000"), (2, 0, "255", "ignore_id is '255'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            ClassIds(count, first_id, ignore_id)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"9 classes from first_id 65530 end at id 65538"):
        ClassIds(9, 65530, 0)


ADE = "Idx\tRatio\tTrain\tVal\tName\n2\t0.1\t1\t1\tsky\n1\t0.2\t1\t1\twall, panel   \n"


@pytest.mark.parametrize(
    ("text", "ids", "expected"),
    [
        ("wall\nsky\n", ClassIds(2, 0, 255), ("wall", "sky")),
        ("wall\r\nsky\r\nvoid", ClassIds(2, 0, 2), ("wall", "sky")),
        ("void\nwall\n\nsky\n", ClassIds(2, 1, 0), None),
        (ADE, ClassIds(2, 1, 0), ("wall, panel", "sky")),
        ("\ufeffwall\nsky", ClassIds(2, 5, None), ("wall", "sky")),
    ],
    ids=["lines", "ignored last", "ignored first", "ade20k", "byte order mark"],
)
def test_class_files(text: str, ids: ClassIds, expected: tuple[str, ...] | None, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(text.encode("utf-8"))
    if (
        expected is None
    ):  # the first line is the first class's: a file that begins with the ignored one has one too many
        with pytest.raises(ConfigError, match=r"3 classes .*num_classes is 2"):
            read_class_names(file, ids)
    else:
        assert read_class_names(file, ids) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"classes\.txt: cannot be read \(No such file"),
        (b"wall\n", r"1 classes .*num_classes is 2"),
        (b"wall\nwall\n", r"the class name 'wall' stands twice"),
        ("wände\nsky".encode("latin-1"), r"not UTF-8"),
        (b"Idx\tRatio\n1\t2\n", r"columns idx, ratio; Idx and Name are needed"),
        (b"Idx\tName\n1\twall\n1\tsky\n", r"line 3: the id 1 stands twice"),
        (b"Idx\tName\n1\twall\nx\tsky\n", r"line 3 of the table has no number or no name"),
        (b"Idx\tName\n1\twall\n7\tsky\n", r"names the id 7, but the 2 classes have ids 1 to 2"),
    ],
    ids=["missing", "too few", "doubled", "not utf-8", "other table", "doubled id", "no number", "other ids"],
)
def test_class_files_that_are_wrong(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_class_names(file, ClassIds(2, 1, 0))


def test_without_a_class_file_the_ids_are_names() -> None:
    assert read_class_names(None, ClassIds(2, 1, 0)) == ("class_1", "class_2")
