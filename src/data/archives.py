"""Photographs inside uncompressed tar files, listed with the offsets that they are read by: archives and WebDataset shards."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import DataError
from ..core.files import parse_json
from ..core.tars import TAR_ERRORS, forward_members
from .listing import IMAGE_SUFFIXES, Entry, Listing

LABEL_KEYS = ("label", "cls", "class", "target")  # of a WebDataset sample's .json
_MAX_LABEL_BYTES = 2**20  # with captions and all; a hole in a sparse file would otherwise be read as gigabytes of zeros


def list_tars(data_root: Path, location: str, inner: str) -> Listing:
    """Lists a tar file, or a folder with a tar file for each class.

    Inside a tar file lie class folders, or tar files named by their class, as ImageNet is distributed.

    Args:
        data_root: what `location` is relative to.
        location: file or folder.
        inner: folder inside the tar file that counts, "" for all.

    Raises:
        DataError: missing, compressed, or cut off.
    """
    place = data_root / location
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.suffix == ".tar")
        if not files:
            raise DataError(f"{place}: no tar files. Expected one for each class, or set dataset.format: folder.")
        listing = Listing([], [], [path.relative_to(data_root).as_posix() for path in files])
        for number, path in enumerate(files):
            listing.classes.append(path.stem)
            listing.entries += [
                Entry(f"{path.stem}/{name}", size_bytes, offset, number, path.stem)
                for name, size_bytes, offset in _members(path, "")
                if _is_image(name)
            ]
        return listing
    if not place.is_file():
        raise DataError(f"{place}: no such tar file; dataset.train and dataset.val are relative to data_root.")
    entries, classes = [], set()
    for name, size_bytes, offset in _members(place, inner):
        folder, slash, rest = name.partition("/")
        if slash:
            classes.add(folder)
            if rest and _is_image(name):
                entries.append(Entry(name, size_bytes, offset, 0, folder))
    return Listing(entries, sorted(classes), [location])


def list_webdataset(data_root: Path, location: str) -> Listing:
    """Lists WebDataset shards: KEY.jpg beside KEY.cls (a number or a name) or KEY.json (with a label).

    Args:
        data_root: what `location` is relative to.
        location: a folder of tar files, or a pattern such as `train-*.tar`.

    Raises:
        DataError: no shard, a photograph without a label, or a damaged shard.
    """
    folder = data_root / location
    files = sorted(folder.glob("*.tar") if folder.is_dir() else data_root.glob(location))
    if not files:
        raise DataError(
            f"{folder}: no WebDataset shards. Give a folder of tar files or a pattern such as train-*.tar, relative to data_root."
        )
    listing = Listing([], [], [path.relative_to(data_root).as_posix() for path in files])
    for number, path in enumerate(files):
        images: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, str] = {}
        with open(path, "rb") as file:
            for name, size_bytes, offset in _members(path, ""):
                key, _, extension = name.rpartition("/")[2].partition(".")
                key = posixpath.join(posixpath.dirname(name), key)
                if _is_image(name):
                    images[key] = (extension, size_bytes, offset)
                elif extension in ("cls", "json"):
                    if size_bytes > _MAX_LABEL_BYTES:
                        raise DataError(f"{path}:{name}: {size_bytes:,} bytes, expected a label of at most 1 MB.")
                    file.seek(offset)
                    labels[key] = _label(f"{path}:{name}", extension, file.read(size_bytes))
        for key, (extension, size_bytes, offset) in images.items():
            if key not in labels:
                raise DataError(f"{path}: {key}.{extension} has no {key}.cls and no {key}.json with its label.")
            listing.entries.append(Entry(f"{path.stem}/{key}.{extension}", size_bytes, offset, number, labels[key]))
    listing.classes = sorted({entry.class_name for entry in listing.entries})
    listing.numbered = all(name.isdecimal() for name in listing.classes)
    return listing


def _label(where: str, extension: str, content: bytes) -> str:
    text = content.decode("utf-8", "replace").strip()
    if extension == "json":
        try:
            document = parse_json(text)
        except ValueError:
            raise DataError(f"{where}: not JSON.") from None
        found = [document[key] for key in LABEL_KEYS if isinstance(document, dict) and key in document]
        if not found or not isinstance(found[0], (int, str)):
            raise DataError(f"{where}: no label; expected a number or name under one of {', '.join(LABEL_KEYS)}.")
        text = str(found[0])
    if not text:
        raise DataError(f"{where}: empty, expected the class's number or name.")
    return text


def _is_image(name: str) -> bool:
    base = name.rpartition("/")[2]
    return not base.startswith(".") and posixpath.splitext(base)[1].lower() in IMAGE_SUFFIXES


def _members(place: Path, inner: str) -> Iterator[tuple[str, int, int]]:
    """Name below `inner`, bytes and offset of every file; folders as "name/". Tar files inside are opened: "stem/name"."""
    prefix = f"{inner}/" if inner else ""
    size_bytes = place.stat().st_size
    try:
        with tarfile.open(place, "r:") as archive:  # uncompressed only: a photograph is read by its offset
            for member in _forward(archive, place):
                name = member.name.removeprefix("./")
                if not name.startswith(prefix):
                    continue
                relative = name.removeprefix(prefix).strip("/")
                if member.isdir():
                    if relative not in ("", ".") and "/" not in relative:
                        yield f"{relative}/", 0, -1
                elif member.isfile():
                    if member.offset_data + member.size > size_bytes:
                        raise DataError(f"{place}: cut off, the archive has no end. Copy it again.")
                    if relative.endswith(".tar"):
                        yield from _inner_members(archive, member, relative, place)
                    else:
                        yield relative, member.size, member.offset_data
            end = archive.offset  # where the archive's closing block of zeros begins
        if end + tarfile.BLOCKSIZE > size_bytes:
            raise DataError(f"{place}: cut off, the archive has no end. Copy it again.")
    except TAR_ERRORS as error:
        raise DataError(
            f"{place}: not an uncompressed tar file ({error}). Unpack it or repack it without gzip."
        ) from None


def _inner_members(
    archive: tarfile.TarFile, member: tarfile.TarInfo, relative: str, place: Path
) -> Iterator[tuple[str, int, int]]:
    stem = posixpath.splitext(relative)[0]
    with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inside:
        for file in _forward(inside, place):
            if file.isfile():
                yield f"{stem}/{file.name.removeprefix('./')}", file.size, member.offset_data + file.offset_data


def _forward(archive: tarfile.TarFile, place: Path) -> Iterator[tarfile.TarInfo]:
    def damaged(member: tarfile.TarInfo) -> DataError:
        return DataError(f"{place}: damaged, {member.name!r} has {member.size} bytes. Copy it again.")

    return forward_members(archive, damaged)
