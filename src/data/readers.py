"""Where a data set's bytes lie: an image folder or a tar file, one folder per class.

Listing is done once, by the manifest job; every other job reads single files by what the manifest says. timm's readers
list too, but keep neither sizes nor tar offsets and sort classes naturally, so this one is ours.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"))


@dataclass(frozen=True)
class Entry:
    """One photograph as found: POSIX path relative to the split's root, bytes, offset in the tar (-1: a file)."""

    path: str
    size_bytes: int
    offset: int

    @property
    def class_folder(self) -> str:
        """Name of the folder that says which class it is."""
        return self.path.split("/", 1)[0]


def split_location(location: str, data_format: str) -> tuple[str, str]:
    """Splits `FILE.tar:INNER/FOLDER` into file and inner folder; a folder has no inner part."""
    if data_format == "tar" and ".tar:" in location:
        file, inner = location.split(".tar:", 1)
        return f"{file}.tar", inner.strip("/")
    return location, ""


def list_entries(data_root: Path, location: str, data_format: str) -> tuple[list[Entry], list[str]]:
    """Lists the photographs of one split.

    Args:
        data_root: the data set's root.
        location: folder or tar file relative to it (`FILE.tar:INNER` for a folder inside a tar).
        data_format: folder | tar.

    Returns:
        entries sorted by path, and the names of all class folders, empty ones too.

    Raises:
        DataError: the root, the split or its class folders are missing.
    """
    if not data_root.is_dir():
        raise DataError(
            f"data_root {data_root}: no such folder on this machine. Set data_root (in config.yaml, an overlay, or "
            "--config data_root=/path) to the folder that holds the data set."
        )
    file_name, inner = split_location(location, data_format)
    place = data_root / file_name
    if data_format == "tar":
        if not place.is_file():
            raise DataError(f"{place}: no such tar file; dataset.train and dataset.val are relative to data_root.")
        entries, folders = _list_tar(place, inner)
    else:
        if not place.is_dir():
            raise DataError(f"{place}: no such folder; dataset.train and dataset.val are relative to data_root.")
        entries, folders = _list_folder(place)
    if not folders:
        raise DataError(f"{place}: no class folders. Expected one folder per class with the photographs inside.")
    for entry in entries:
        try:
            entry.path.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{place}: the file name {entry.path!r} is not UTF-8, so it has no id. Rename the file."
            ) from None
    return sorted(entries, key=lambda entry: entry.path), sorted(folders)


def _list_folder(place: Path) -> tuple[list[Entry], list[str]]:
    entries = []
    folders = [item.name for item in os.scandir(place) if item.is_dir() and not item.name.startswith(".")]
    for folder in folders:
        for here, subfolders, files in os.walk(place / folder, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                    path = Path(here) / name
                    entries.append(Entry(path.relative_to(place).as_posix(), path.stat().st_size, -1))
    return entries, folders


def _list_tar(place: Path, inner: str) -> tuple[list[Entry], list[str]]:
    entries = []
    folders = set()
    prefix = f"{inner}/" if inner else ""
    try:
        with tarfile.open(place, "r:") as archive:  # uncompressed only: a photograph is read by its offset
            for member in archive:
                name = member.name.removeprefix("./")
                if not name.startswith(prefix):
                    continue
                relative = name.removeprefix(prefix)
                if member.isdir():
                    folder = relative.strip("/")
                    if folder not in ("", ".") and "/" not in folder:
                        folders.add(folder)
                elif member.isfile() and "/" in relative and Path(relative).suffix.lower() in IMAGE_SUFFIXES:
                    folders.add(relative.split("/", 1)[0])
                    entries.append(Entry(relative, member.size, member.offset_data))
            end = archive.offset  # where the archive's closing block of zeros begins
        size_bytes = place.stat().st_size
        if end + tarfile.BLOCKSIZE > size_bytes or any(e.offset + e.size_bytes > size_bytes for e in entries):
            raise DataError(f"{place}: cut off, the archive has no end. Copy it again.")
    except tarfile.TarError as error:
        raise DataError(
            f"{place}: not an uncompressed tar file ({error}). Unpack it or repack it without gzip."
        ) from None
    return entries, list(folders)


class ByteSource:
    """Reads single photographs; safe with DataLoader workers (each process opens its own descriptor)."""

    def __init__(self, data_root: Path, location: str, data_format: str) -> None:
        file_name, self._inner = split_location(location, data_format)
        self._place = data_root / file_name
        self._tar = data_format == "tar"
        self._descriptor: int | None = None
        self._process = -1

    def read(self, path: str, size_bytes: int, offset: int) -> bytes:
        """Bytes of one photograph.

        Raises:
            DataError: it is gone or has another size than when the manifest was made.
        """
        try:
            encoded = self._read_tar(size_bytes, offset) if self._tar else (self._place / path).read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{self._place / path}: the photograph is gone since the manifest was made. {REMEDY}"
            ) from None
        except OSError as error:
            raise DataError(f"{self._place / path}: cannot be read ({error.strerror}).") from None
        if len(encoded) != size_bytes:
            raise DataError(
                f"{self._place / path}: {len(encoded)} bytes, the manifest says {size_bytes}; the photograph has changed. "
                f"{REMEDY}"
            )
        return encoded

    def _read_tar(self, size_bytes: int, offset: int) -> bytes:
        if self._descriptor is None or self._process != os.getpid():
            self._descriptor = os.open(self._place, os.O_RDONLY)
            self._process = os.getpid()
        return os.pread(self._descriptor, size_bytes, offset)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None, "_process": -1}


REMEDY = "Restore it, or give the changed data set a new dataset.version."


def iter_image_files(folder: Path) -> Iterator[Path]:
    """Yields the image files of a folder and its subfolders, sorted; for `predict`, which has no manifest."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
