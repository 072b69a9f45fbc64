"""What a folder of one's own photographs holds: classes, sizes, broken files, near-duplicates, label errors, the validation split.

Every photograph is decoded once. Refuses in one line what no study can use; never changes the folder. Called by `command`.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.errors import DataError
from ..data.duplicates import find_near_duplicates
from ..data.listing import IMAGE_SUFFIXES, Entry
from ..data.manifest import split_validation
from ..data.readers import list_entries

SPLITS = ("train", "val")  # names of the two folders that together are a data set with its own split


@dataclass(frozen=True)
class Survey:
    """A folder of photographs.

    Attributes:
        folder: holds one folder for each class, or train and val that do.
        own_split: the folder has train and val.
        counts: class name -> readable photographs, both splits, in lexicographic order.
        train: photographs to learn from, broken ones too.
        val: photographs to measure with, broken ones too.
        smallest_sides: pixels of the shorter side: least, median, largest.
        formats: format -> photographs.
        broken: paths below the folder that cannot be decoded.
        near_duplicates: groups of paths that show one picture.
        cross_class: those groups that lie in several classes: label errors.
        across_splits: those groups that lie in train and in val; only where the folder has its own split.
        examples: paths of readable photographs, spread over the folder.
    """

    folder: Path
    own_split: bool
    counts: dict[str, int]
    train: int
    val: int
    smallest_sides: tuple[int, int, int]
    formats: dict[str, int]
    broken: tuple[str, ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    cross_class: tuple[tuple[str, ...], ...]
    across_splits: tuple[tuple[str, ...], ...]
    examples: tuple[Path, ...]


def survey_folder(folder: Path, val_fraction: float = 0.2, val_seed: int = 0, threads: int = 1) -> Survey:
    """Decodes every photograph of a folder and counts what a study has to know.

    Args:
        folder: one folder for each class, photographs directly in it; or train and val that are such folders.
        val_fraction: share of each class that a study sets aside, where the folder has no split of its own.
        val_seed: which ones.
        threads: that decode.

    Raises:
        DataError: no folder, no or one class, nested classes, photographs beside the classes, or a class with fewer
            than two readable photographs.
    """
    own_split = folder.is_dir() and {item.name for item in folder.iterdir() if item.is_dir()} == set(SPLITS)
    places = [folder / split for split in SPLITS] if own_split else [folder]
    entries = [_entries_of(place) for place in places]
    if own_split:
        one, other = ({entry.class_name for entry in part} for part in entries)
        if one != other:
            raise DataError(
                f"{folder}: class {sorted(one ^ other)[0]!r} is in only one of train and val; both need the same class folders"
            )
    found = [(place, entry) for place, part in zip(places, entries, strict=True) for entry in part]
    paths = [place / entry.path for place, entry in found]
    groups, readable = find_near_duplicates(lambda row: _read(paths[row]), len(paths), threads)
    counts = Counter(entry.class_name for (_, entry), fine in zip(found, readable, strict=True) if fine)
    classes = sorted({entry.class_name for _, entry in found})
    few = next((name for name in classes if counts[name] < 2), None)
    if few is not None:
        raise DataError(
            f"{folder}: class {few!r} has {counts[few]} readable photographs; training and validation need at least two. "
            "Add photographs or remove the class folder"
        )
    class_of = {_name(folder, path): entry.class_name for path, (_, entry) in zip(paths, found, strict=True)}
    members: dict[int, list[str]] = {}
    for row in np.flatnonzero(readable):
        members.setdefault(int(groups[row]), []).append(_name(folder, paths[row]))
    shared = [tuple(group) for group in members.values() if len(group) > 1]
    if own_split:
        train, val = len(entries[0]), len(entries[1])
    else:
        kept, aside = split_validation(entries[0], val_fraction, val_seed, groups)
        train, val = len(kept), len(aside)
    fine_paths = [path for path, fine in zip(paths, readable, strict=True) if fine]
    headers = [_header(path) for path in fine_paths]
    sides = [side for side, _ in headers]
    return Survey(
        folder=folder,
        own_split=own_split,
        counts={name: counts[name] for name in classes},
        train=train,
        val=val,
        smallest_sides=(min(sides), round(statistics.median(sides)), max(sides)),
        formats=dict(Counter(name for _, name in headers).most_common()),
        broken=tuple(_name(folder, path) for path, fine in zip(paths, readable, strict=True) if not fine),
        near_duplicates=tuple(shared),
        cross_class=tuple(group for group in shared if len({class_of[name] for name in group}) > 1),
        across_splits=tuple(
            group for group in shared if own_split and len({name.split("/", 1)[0] for name in group}) > 1
        ),
        examples=tuple(fine_paths[:: max(1, len(fine_paths) // 16)][:16]),
    )


def _entries_of(place: Path) -> Sequence[Entry]:
    """Photographs of one folder of class folders, as the manifest will list them."""
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; give the folder that holds one folder for each class")
    try:
        with os.scandir(place) as scan:
            items = sorted((item for item in scan if not item.name.startswith(".")), key=lambda item: item.name)
    except PermissionError:
        raise DataError(f"{place}: no permission to list this folder; make it readable") from None
    names = [item.name for item in items if item.is_dir()]
    beside = [item.name for item in items if not item.is_dir() and Path(item.name).suffix.lower() in IMAGE_SUFFIXES]
    if not names and beside:
        raise DataError(
            f"{place}: {len(beside)} photographs and no class folder; a study needs one folder for each class, as "
            f"{place}/cat/{beside[0]}"
        )
    if len(names) < 2:
        raise DataError(f"{place}: {len(names)} class folders; expected at least two, one folder for each class")
    if beside:
        raise DataError(f"{place / beside[0]}: a photograph beside the class folders; move it into its class's folder")
    listing = list_entries(place, ".", "folder")
    nested = next((entry for entry in listing.entries if entry.path.count("/") > 1), None)
    if nested is not None:
        raise DataError(
            f"{place / nested.path}: lies below a class folder's own folder; put each class's photographs directly in it"
        )
    empty = sorted(set(listing.classes) - {entry.class_name for entry in listing.entries})
    if empty:
        raise DataError(f"{place / empty[0]}: 0 photographs; add some or remove the class folder")
    return listing.entries


def _header(path: Path) -> tuple[int, str]:
    """Shorter side in pixels and format."""
    with Image.open(path) as picture:
        return min(picture.size), str(picture.format)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # counted as broken by whoever decodes it


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
