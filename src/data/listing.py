"""What listing a data set gives: an entry for each photograph, and the classes; made by `readers` and what it calls."""

from __future__ import annotations

from dataclasses import dataclass, field

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One photograph as found.

    Attributes:
        path: POSIX, relative to the split's root.
        size_bytes: -1 where it is no file: a folder named like a photograph, a dangling link.
        offset: in the archive; the row of a Hugging Face data set; -1 for a file.
        archive: which of the listing's archives.
        class_name: folder, or what the labels say.
    """

    path: str
    size_bytes: int
    offset: int
    archive: int
    class_name: str


@dataclass
class Listing:
    """The photographs of one split.

    Attributes:
        entries: in any order.
        classes: all names, those without photographs too.
        archives: file names relative to data_root.
        numbered: class names are the numbers that the labels have; a class map gives them names.
        ordered: the order of `classes` is the data set's own and not to be sorted.
    """

    entries: list[Entry]
    classes: list[str]
    archives: list[str] = field(default_factory=list)
    numbered: bool = False
    ordered: bool = False
