"""A further folder of photographs, and which of the model's classes its folders are.

A set with some of the classes is measured among those classes only: the other logits are left out, as is usual for ImageNet-A
and -R. Called by `evaluation` for the selected test sets and by `tokenlabel evaluate` for a folder given by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..data.listing import Entry
from ..data.manifest import Manifest, manifest_of_entries
from ..data.readers import list_entries

NAMED = 3  # folders that an error names


@dataclass(frozen=True)
class ImageSet:
    """Photographs with their classes.

    Attributes:
        place: folder of the class folders.
        manifest: its classes are those that the folder has, in the model's order.
        columns: the model's class for each of them; None: all of the model's.
    """

    place: Path
    manifest: Manifest
    columns: tuple[int, ...] | None

    def machine(self, machine: dict[str, Any]) -> dict[str, Any]:
        """The machine settings with this folder in the place of the data set's validation split."""
        return machine | {
            "data_root": str(self.place.parent),
            "dataset": {"format": "folder", "val": self.place.name},
        }


def open_image_set(
    place: Path, rule: str, classes: Sequence[str], *, title: str, images: int | None = None, maps: Path = Path()
) -> ImageSet:
    """Lists a folder of class folders.

    Args:
        place: the folder.
        rule: what its folders are called: names, index, or file:PATH of a map.
        classes: the model's, by index.
        title: what it is, for errors.
        images: photographs that there must be; None: any number.
        maps: folder that PATH is relative to.

    Raises:
        DataError: no such folder, no photographs or too few, or a folder that is no class.
    """
    if not place.is_dir():
        raise DataError(f"{title}: {place}: no such folder on this machine. Put it there, or leave it out.")
    place = place.resolve()
    listing = list_entries(place.parent, place.name, "folder")
    class_of = _classes_of_folders(listing.classes, rule, classes, f"{title}: {place}", maps)
    entries = [dataclasses.replace(entry, class_name=class_of[entry.class_name]) for entry in listing.entries]
    _refuse_gaps(listing.classes, listing.entries, images, f"{title}: {place}")
    present = set(class_of.values())
    columns = tuple(index for index, name in enumerate(classes) if name in present)
    return ImageSet(
        place=place,
        manifest=manifest_of_entries(entries, [classes[index] for index in columns]),
        columns=columns if len(columns) < len(classes) else None,
    )


def columns_of(names: Sequence[str], classes: Sequence[str], where: str) -> tuple[int, ...] | None:
    """The model's class for each class of a data set; None where they are the same.

    Args:
        names: folder names of the data set's classes.
        classes: the model's, by index.
        where: the checkpoint, for errors.

    Raises:
        DataError: a class that the model does not know.
    """
    if tuple(names) == tuple(classes):
        return None
    index_of = {name: index for index, name in enumerate(classes)}
    if unknown := [name for name in names if name not in index_of]:
        raise DataError(
            f"checkpoint {where}: it knows {len(classes)} classes ({', '.join(classes[:2])}, ...), and {_listed(unknown)} of the "
            "data set are none of them. Choose a checkpoint for these classes, or the data set that it is for."
        )
    return tuple(index_of[name] for name in names)


def _classes_of_folders(
    folders: Sequence[str], rule: str, classes: Sequence[str], where: str, maps: Path
) -> dict[str, str]:
    """Class name of each folder."""
    if rule == "index":
        known = {str(index): name for index, name in enumerate(classes)}
        meaning = f"a class index, 0 to {len(classes) - 1}"
    elif rule == "names":
        known = {name: name for name in classes}
        meaning = f"a class ({', '.join(classes[:2])}, ...)"
    else:
        path = maps / rule.removeprefix("file:")
        known = _read_map(path, classes)
        meaning = f"in {path}"
    if unknown := [folder for folder in folders if folder not in known]:
        raise DataError(
            f"{where}: {_listed(unknown)} {'is' if len(unknown) == 1 else 'are'} not {meaning}. Rename or remove, or say how the "
            "folders are called: names, index or file:PATH."
        )
    return {folder: known[folder] for folder in folders}


def _read_map(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Folder -> class name, of a file with `FOLDER CLASS` a line."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class map {path}: cannot be read ({error}).") from None
    known = set(classes)
    for number, words in enumerate(lines, 1):
        if len(words) != 2 or words[1] not in known:
            raise DataError(
                f"class map {path}, line {number}: {' '.join(words)!r}, expected FOLDER CLASS with a class of "
                f"{', '.join(classes[:2])}, ..."
            )
    return dict(lines)


def _refuse_gaps(folders: Sequence[str], entries: Sequence[Entry], images: int | None, where: str) -> None:
    filled = {entry.class_name for entry in entries}
    if empty := [folder for folder in folders if folder not in filled]:
        raise DataError(f"{where}: {_listed(empty)} without a photograph. Add some, or remove the folder.")
    if images not in (None, len(entries)):
        raise DataError(
            f"{where}: {len(entries)} photographs, expected {images}. Unpack the set again, or correct its `images`."
        )


def _listed(folders: Sequence[str]) -> str:
    more = f" and {len(folders) - NAMED} more" if len(folders) > NAMED else ""
    return f"folder {', '.join(folders[:NAMED])}{more}"
