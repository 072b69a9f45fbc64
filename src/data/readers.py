"""Where a data set's bytes lie: class folders, tar files, WebDataset shards, or a Hugging Face data set on disk.

Listing is done once, by the manifest job; every other job reads single photographs by what the manifest says. timm's readers
list all of these too, but keep neither sizes nor offsets (WebDataset's only goes forward), and sort classes naturally, so these
are ours.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import DataError, UnreadableImageError
from .archives import list_tars, list_webdataset
from .listing import IMAGE_SUFFIXES, Entry, Listing

_ADVISED_BYTES = 128 * 1024  # Linux reads no more ahead for one request
_MAX_OPEN_ARCHIVES = 128  # of a process
REMEDY = "Restore it; or run tokenlabel refresh, then snakemake, which redoes the shards of what changed."


def split_location(location: str, data_format: str) -> tuple[str, str]:
    """Splits `FILE.tar:INNER/FOLDER` into file and inner folder; a folder has no inner part."""
    if data_format == "tar" and ".tar:" in location:
        file, inner = location.split(".tar:", 1)
        return f"{file}.tar", inner.strip("/")
    return location, ""


def list_entries(data_root: Path, location: str, data_format: str) -> Listing:
    """Lists the photographs of one split.

    Args:
        data_root: the data set's root.
        location: relative to it: a folder of class folders; a tar file (`FILE.tar:INNER` for a folder inside it) or a folder of
            tar files, one for each class; a folder or pattern of WebDataset shards; a folder of `Dataset.save_to_disk`.
        data_format: folder | tar | webdataset | huggingface.

    Returns:
        entries sorted by path, and all classes, empty ones too.

    Raises:
        DataError: the root, the split or its classes are missing, or an archive is damaged.
    """
    if not data_root.is_dir():
        raise DataError(
            f"data_root {data_root}: no such folder on this machine ({platform.node()}). Set data_root (in config.yaml, an "
            "overlay, or --config data_root=/path) to the folder that holds the data set."
        )
    file_name, inner = split_location(location, data_format)
    place = data_root / file_name
    if data_format == "tar":
        listing = list_tars(data_root, file_name, inner)
    elif data_format == "webdataset":
        listing = list_webdataset(data_root, location)
    elif data_format == "huggingface":
        from .hub_datasets import list_saved_dataset

        listing = list_saved_dataset(place)
    else:
        if not place.is_dir():
            raise DataError(f"{place}: no such folder; dataset.train and dataset.val are relative to data_root.")
        listing = _list_folder(place)
    if not listing.classes:
        raise DataError(f"{place}: no class folders. Expected one folder per class with the photographs inside.")
    for entry in listing.entries:
        if not entry.path.isascii():
            _check_utf8(place, entry.path)
        if ".." in entry.path or entry.path.startswith("/"):
            _check_inside(place, entry.path)
    listing.entries.sort(key=lambda entry: entry.path)
    return listing


def _check_utf8(place: Path, path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place}: the file name {path!r} is not UTF-8, so it has no id. Rename the file.") from None


def _check_inside(place: Path, path: str) -> None:
    """Names of photographs become names of files elsewhere, such as those of exported labels."""
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{place}: the name {path!r} leads out of the data set. Rename the member or the class.")


def _list_folder(place: Path) -> Listing:
    """Class folders with photographs at any depth; what looks like a photograph and is none is listed too, to be recorded."""
    entries: list[Entry] = []
    try:
        classes = [item.name for item in os.scandir(place) if item.is_dir() and not item.name.startswith(".")]
        for name in classes:
            _walk(str(place / name), f"{name}/", name, IMAGE_SUFFIXES, (), entries)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to list this folder.") from None
    return Listing(entries, sorted(classes))


def list_files(place: Path, suffixes: frozenset[str]) -> list[Entry]:
    """Lists the files of a folder at any depth by their suffix; hidden ones are left out.

    Args:
        place: the folder.
        suffixes: lower case, with the dot.

    Returns:
        entries of no class, sorted by path.

    Raises:
        DataError: it is no folder, may not be listed, or a name in it is not UTF-8.
    """
    entries: list[Entry] = []
    try:
        _walk(str(place), "", "", suffixes, (), entries)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to list this folder.") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{error.filename}: no such folder.") from None
    for entry in entries:
        if not entry.path.isascii():
            _check_utf8(place, entry.path)
    return sorted(entries, key=lambda entry: entry.path)


def _walk(
    folder: str, prefix: str, name: str, suffixes: frozenset[str], above: tuple[tuple[int, int], ...],
    entries: list[Entry],
) -> None:  # fmt: skip
    status = os.stat(folder)  # noqa: PTH116 - a million paths: plain strings are several times as fast as Path
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    for item in os.scandir(folder):
        if item.name.startswith("."):
            continue
        path = f"{prefix}{item.name}"
        _, dot, ending = item.name.rpartition(".")  # half of os.path.splitext's time, which was most of the listing's
        is_image = dot + ending.lower() in suffixes
        if not is_image and _is_folder(item):
            _walk(item.path, f"{path}/", name, suffixes, (*above, here), entries)
        elif is_image:
            try:
                status = item.stat()
                size_bytes = (
                    status.st_size if stat.S_ISREG(status.st_mode) else -1
                )  # not a pipe, which would be waited for
            except OSError:  # a dangling link
                size_bytes = -1
            entries.append(Entry(path, size_bytes, -1, 0, name))


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


class _OpenArchive:
    """A file that is closed once nobody holds it: not while another thread reads, whoever has opened too many."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ByteSource:
    """Reads single photographs; safe in threads, and in processes that are forked (each opens its own descriptors).

    Args:
        data_root, location, data_format: as in `list_entries`.
        archives: file names of the split's archives, in the order that entries number them.
        remedy: what to do where a file no longer fits the manifest; the last sentence of the error.
    """

    def __init__(
        self, data_root: Path, location: str, data_format: str, archives: Sequence[str] = (), remedy: str = REMEDY
    ) -> None:
        file_name, _ = split_location(location, data_format)
        self._remedy = remedy
        self._place, self._format = data_root / file_name, data_format
        self._archives = [data_root / name for name in archives] or [self._place]
        self._open: dict[int, _OpenArchive] = {}
        self._lock = threading.Lock()
        self._process = -1
        self._rows: object = None

    def read(self, path: str, size_bytes: int, offset: int, archive: int = 0) -> bytes:
        """Bytes of one photograph.

        Raises:
            UnreadableImageError: it is a folder, a dangling link, not permitted, or on a disk that does not answer.
            DataError: it is gone or has another size than when the manifest was made.
        """
        place = self._place / path
        try:
            if self._format == "folder":
                if size_bytes < 0 and place.exists() and not place.is_dir():
                    raise UnreadableImageError("no regular file")
                encoded = place.read_bytes()
            elif self._format == "huggingface":
                encoded = self._read_row(offset)
            else:
                encoded = self._read_archive(archive, size_bytes, offset)
        except FileNotFoundError:
            if place.is_symlink():
                raise UnreadableImageError(f"dangling link to {place.readlink()}") from None
            raise DataError(f"{place}: the file is gone since the manifest was made. {self._remedy}") from None
        except IsADirectoryError:
            raise UnreadableImageError("a folder, not a file") from None
        except PermissionError:
            raise UnreadableImageError("no permission to read the file") from None
        except OSError as error:
            raise UnreadableImageError(f"the file cannot be read: {error.strerror}") from None
        if len(encoded) != size_bytes:
            raise DataError(
                f"{place}: {len(encoded)} bytes, the manifest says {size_bytes}; the file has changed. {self._remedy}"
            )
        return encoded

    @property
    def place(self) -> Path:
        """What the paths are relative to: the split's folder, or its archive."""
        return self._place

    @property
    def has_archives(self) -> bool:
        """Whether photographs lie one behind the other in tar files."""
        return self._format in ("tar", "webdataset")

    def will_read(self, spans: Sequence[tuple[int, int, int]]) -> None:
        """Asks the kernel to read parts of the archives into its cache; a system that cannot ignores it.

        Args:
            spans: archive, first byte and length of each.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        for archive, start, length in spans:
            with contextlib.suppress(OSError):  # whoever reads the photograph itself says what is wrong
                opened = self._opened(archive)
                for offset in range(start, start + length, _ADVISED_BYTES):
                    os.posix_fadvise(opened.descriptor, offset, _ADVISED_BYTES, os.POSIX_FADV_WILLNEED)

    def _read_archive(self, archive: int, size_bytes: int, offset: int) -> bytes:
        opened = self._opened(archive)  # stays open as long as somebody holds it
        return os.pread(opened.descriptor, size_bytes, offset)

    def _opened(self, archive: int) -> _OpenArchive:
        """One of a few archives that are kept open: ImageNet-21k has 21,841, a process may open some 1,000 files."""
        if self._process != os.getpid():  # a lock may have been held while forking
            self._open, self._lock, self._process = {}, threading.Lock(), os.getpid()
        with self._lock:
            opened = self._open.pop(archive, None) or _OpenArchive(self._archives[archive])
            self._open[archive] = opened  # last in, so the first is the one used longest ago
            if len(self._open) > _MAX_OPEN_ARCHIVES:
                del self._open[next(iter(self._open))]
        return opened

    def _read_row(self, row: int) -> bytes:
        from .hub_datasets import SavedDataset

        if self._rows is None:
            self._rows = SavedDataset(self._place)
        assert isinstance(self._rows, SavedDataset)
        return self._rows.image_bytes(row)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "_lock": None, "_process": -1, "_rows": None}


def iter_image_files(folder: Path) -> Iterator[Path]:
    """Yields the image files of a folder and its subfolders, sorted; for `predict`, which has no manifest."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
