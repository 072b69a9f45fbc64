"""Masks: a label PNG's bytes to one class index a pixel, and the file that names the classes.

Called by `scenes` and whatever else reads a mask. Never guesses: a mask with colours, an id that stands for no class or a class
file that says something twice is refused, because a wrong mask would otherwise train without a word. Greys of 2 and 4 bits, to
which tools shrink a PNG of few ids, are ids too, which Pillow spreads over 0 to 255. Source: ours.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ..core.errors import ConfigError, DataError, UnreadableImageError
from .images import in_words

IGNORED = -1  # class index of a pixel that neither training nor testing counts
_NO_CLASS = -2  # in tables: an id that stands for nothing
_MAX_ID = 65535  # of a 16-bit PNG
_MOST_CLASSES = 32767  # that class indices of 16 bits with a sign tell apart
_PNG = b"\x89PNG\r\n\x1a\n"
# Pillow's modes of one channel that hold what the file holds; I of a 16-bit PNG comes from Pillow before 11
_ID_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_NAMED = 5  # ids in a message
_SPREAD = {2: 85, 4: 17}  # bits of a grey pixel: what Pillow multiplies it with, so that white is 255


def decode_mask(encoded: bytes) -> NDArray[np.uint16]:
    """Decodes a label PNG: grey levels of 1 to 16 bits, or the indices of a palette, are ids.

    Args:
        encoded: the file's bytes.

    Returns:
        uint16 (height, width), upright, as the photograph is.

    Raises:
        UnreadableImageError: empty, truncated or damaged.
        DataError: no PNG, or one with colours; the message goes behind the file's name.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            file_format, mode = picture.format, picture.mode
            if file_format == "PNG" and mode in _ID_MODES:
                picture.load()
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
                ids = np.asarray(ImageOps.exif_transpose(picture) if turned else picture)
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise almost any type on damaged bytes
        raise UnreadableImageError(f"{type(error).__name__}: {in_words(error)}"[:200]) from None
    if file_format != "PNG":
        raise DataError(
            f"the mask is {file_format}, expected PNG: other formats change ids or are rare. Save the mask as PNG with one "
            "channel of class ids."
        )
    if mode not in _ID_MODES:
        raise DataError(
            f"the mask has colours ({mode}), expected one channel of class ids. Save for each pixel its class's id (grey or "
            "palette PNG) instead of its colour."
        )
    if mode == "L" and encoded.startswith(_PNG):
        ids = ids // _SPREAD.get(encoded[24], 1)  # byte 24 of a PNG: bits of a sample
    return ids.astype(np.uint16, copy=False)


@dataclass(frozen=True)
class ClassIds:
    """Which id in a mask stands for which class.

    Attributes:
        count: number of classes.
        first_id: of the first class; the others follow.
        ignore_id: of pixels that do not count, no class's; None: all count.

    Raises:
        ConfigError: no whole numbers in range, the ignored id is that of a class, or the last id is beyond 16 bits.
    """

    count: int
    first_id: int
    ignore_id: int | None

    def __post_init__(self) -> None:
        for key, value, least, most in (  # a spec may be by hand
            ("num_classes", self.count, 1, _MOST_CLASSES),
            ("first_id", self.first_id, 0, _MAX_ID),
            ("ignore_id", 0 if self.ignore_id is None else self.ignore_id, 0, _MAX_ID),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(
                    f"segmentation.dataset.{key} is {value!r}; expected a whole number from {least} to {most}."
                )
        if self.ignore_id in self.ids:
            raise ConfigError(
                f"segmentation.dataset.ignore_id {self.ignore_id} is the id of a class: {self.count} classes have ids "
                f"{self.ids[0]} to {self.ids[-1]}. Give an id outside, or null."
            )

        if self.ids[-1] > _MAX_ID:
            raise ConfigError(
                f"segmentation.dataset: {self.count} classes from first_id {self.first_id} end at id {self.ids[-1]}, but a mask "
                f"has 16 bits, ids up to {_MAX_ID}. Correct num_classes or first_id."
            )

    @property
    def ids(self) -> range:
        """Id of each class."""
        return range(self.first_id, self.first_id + self.count)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        table = np.full(_MAX_ID + 1, _NO_CLASS, np.int16)
        table[self.first_id : self.first_id + self.count] = np.arange(self.count, dtype=np.int16)
        if self.ignore_id is not None:
            table[self.ignore_id] = IGNORED
        return table

    def class_indices(self, ids: NDArray[np.uint16]) -> NDArray[np.int16]:
        """Looks every pixel's class up.

        Args:
            ids: uint16 (height, width).

        Returns:
            int16 (height, width): 0 to count - 1, or IGNORED.

        Raises:
            DataError: ids that stand for no class; the message goes behind the file's name.
        """
        # the table has every id of 16 bits, so nothing is clipped: the fastest of numpy's ways
        indices: NDArray[np.int16] = self._table.take(ids, mode="clip")
        if indices.size and indices.min() == _NO_CLASS:
            strange, pixels = np.unique(ids[indices == _NO_CLASS], return_counts=True)
            named = ", ".join(map(str, strange[:_NAMED].tolist())) + ", ..." * (len(strange) > _NAMED)
            raise DataError(
                f"ids in the mask that stand for no class: {named} ({pixels.sum():,} of {ids.size:,} pixels). The {self.count} "
                f"classes have ids {self.ids[0]} to {self.ids[-1]}, ignored is {self.ignore_id}. Correct the mask, or num_classes, "
                "first_id or ignore_id of segmentation.dataset."
            )
        return indices


def read_class_names(path: Path | None, ids: ClassIds) -> tuple[str, ...]:
    """Names of the classes: a file with one name a line, the first one's id being first_id, or ADE20K's table.

    A line in the place of the ignored id is passed over.

    Args:
        path: of the file; None: classes are named by their ids.
        ids: of the classes.

    Raises:
        ConfigError: the file is missing, not UTF-8, has another number of classes than `num_classes`, or a name or id twice.
    """
    if path is None:
        return tuple(f"class_{number}" for number in ids.ids)
    where = f"segmentation.dataset.classes {path}"
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot be read ({error.strerror}). Give a file with one class name a line, relative to "
            "segmentation_root, or null."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 ({error}). Save it as UTF-8.") from None
    names = _named_by_table(lines, where) if lines and "\t" in lines[0] else _named_by_line(lines, ids.first_id)
    names.pop(-1 if ids.ignore_id is None else ids.ignore_id, None)
    if len(names) != ids.count:
        raise ConfigError(
            f"{where}: {len(names)} classes (without the ignored id {ids.ignore_id}), but segmentation.dataset.num_classes is "
            f"{ids.count}. Correct the one that is wrong."
        )
    if list(names) != list(ids.ids):
        wrong = next(found for found, expected in zip(names, ids.ids, strict=True) if found != expected)
        raise ConfigError(
            f"{where}: names the id {wrong}, but the {ids.count} classes have ids {ids.ids[0]} to {ids.ids[-1]}. Correct "
            "first_id of segmentation.dataset, or the file."
        )
    seen: set[str] = set()
    for name in names.values():
        if name in seen:
            raise ConfigError(f"{where}: the class name {name!r} stands twice. Make the names differ.")
        seen.add(name)
    return tuple(names.values())


def _named_by_line(lines: Sequence[str], first_id: int) -> dict[int, str]:
    return {first_id + number: line.strip() for number, line in enumerate(lines)}


def _named_by_table(lines: Sequence[str], where: str) -> dict[int, str]:
    """ADE20K's objectInfo150.txt: columns by tabs, of which Idx and Name count; sorted by id."""
    header = [column.strip().lower() for column in lines[0].split("\t")]
    if not {"idx", "name"} <= set(header):
        raise ConfigError(
            f"{where}: a table with columns {', '.join(header)}; Idx and Name are needed. Add them, or give one name a line."
        )
    number, name = header.index("idx"), header.index("name")
    named: dict[int, str] = {}
    for count, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) <= max(number, name) or not cells[number].isdecimal() or not cells[name]:
            raise ConfigError(f"{where}: line {count} of the table has no number or no name. Correct it.")
        if int(cells[number]) in named:
            raise ConfigError(f"{where}: line {count}: the id {cells[number]} stands twice. Correct it.")
        named[int(cells[number])] = cells[name]
    return dict(sorted(named.items()))
