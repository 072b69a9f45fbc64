"""What a folder of one's own photographs holds: classes, broken files, near-duplicates, label errors.

Refuses in one line what no study can use. Never changes the folder.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..data.duplicates import find_near_duplicates
from ..data.readers import iter_image_files


@dataclass(frozen=True)
class Survey:
    """A folder of photographs, decoded once.

    Attributes:
        folder: with one folder for each class.
        counts: class name -> readable photographs, classes in lexicographic order.
        broken: paths below the folder that cannot be decoded.
        cross_class: groups of paths that show one picture under several classes: label errors.
        near_duplicates: readable photographs that share a picture with another one.
    """

    folder: Path
    counts: dict[str, int]
    broken: tuple[str, ...]
    cross_class: tuple[tuple[str, ...], ...]
    near_duplicates: int


def survey_folder(folder: Path) -> Survey:
    """Decodes every photograph of a folder and counts what a study has to know.

    Args:
        folder: one folder for each class, photographs directly in it.

    Raises:
        DataError: no folder, no or one class, nested classes, photographs beside the classes, or a class with fewer
            than two readable photographs.
    """
    classes = _class_names(folder)
    paths = [path for name in classes for path in sorted(iter_image_files(folder / name))]
    nested = next((path for path in paths if len(path.relative_to(folder).parts) != 2), None)
    if nested is not None:
        raise DataError(
            f"{nested}: lies below a class folder's own folder; put each class's photographs directly in it"
        )
    groups, readable = find_near_duplicates(lambda row: _read(paths[row]), len(paths))
    counts = Counter(path.parent.name for path, fine in zip(paths, readable, strict=True) if fine)
    few = next((name for name in classes if counts[name] < 2), None)
    if few is not None:
        raise DataError(
            f"{folder / few}: {counts[few]} readable photographs; training and validation need at least two of a class. "
            "Add photographs or remove the folder"
        )
    members: dict[int, list[Path]] = {}
    for row in np.flatnonzero(readable):
        members.setdefault(int(groups[row]), []).append(paths[row])
    shared = [group for group in members.values() if len(group) > 1]
    return Survey(
        folder=folder,
        counts={name: counts[name] for name in classes},
        broken=tuple(_name(folder, path) for path, fine in zip(paths, readable, strict=True) if not fine),
        cross_class=tuple(
            tuple(_name(folder, path) for path in group)
            for group in shared
            if len({path.parent.name for path in group}) > 1
        ),
        near_duplicates=sum(len(group) for group in shared),
    )


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds one folder for each class")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder}: {len(names)} class folders; expected at least two, one folder for each class")
    beside = next((path for path in iter_image_files(folder) if path.parent == folder), None)
    if beside is not None:
        raise DataError(f"{beside}: a photograph beside the class folders; move it into its class's folder")
    return names


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # counted as broken by whoever decodes it


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
