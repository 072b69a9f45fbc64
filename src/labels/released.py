"""The layout of the released code: one `.pt` file a photograph, a float16 tensor (2, k, H, W) of logits and class ids.

Reading never executes what a file says (`weights_only`), and checks everything before it is believed. Called by
`tokenlabel labels export` and `tokenlabel annotate import`; torch is loaded only when a file is read or written.

What the released loader (tlt 0.2.0) does with a file, which decides the axes of an export. For a crop (left, top, right,
bottom) token (i, j) takes the map at [left + i, top + j], where [top + i, left + j] would be right, and flips axis 3.
    map as it is (H down, W right): right for the whole photograph, flipped or not; the region of every crop is mirrored on
        the diagonal.
    map transposed: the region of every crop is right, so the pooled class target is; the tokens inside are transposed; and
        for photographs that are flipped the region is turned by 180 degrees, so train with `--hflip 0`.
No file makes that loader's token targets right; swapping the first two and the last two of its `coords` and exporting the
map as it is does.

Source: zihangJiang/TokenLabeling, generate_label.py and tlt/data.
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError, OutputError
from ..core.seeds import sample_id
from ..core.tars import TAR_ERRORS, forward_members

LARGEST_CLASS = 2048  # float16 holds whole numbers up to here
LARGEST_FILE_BYTES = 1 << 24  # 2,000 times the published files; more is no label
ZIP_BEGINS = b"PK\x03\x04"
SMALLEST_COLS = 6  # the released loader keeps the crop and the class in the first row of an extra plane


def released_name(path: str) -> str:
    """File of a photograph's label: its folder and name, cut at the first dot of both, as the released loader cuts.

    Example:
        released_name("n01440764/a.b.JPEG")  # n01440764/a.pt
    """
    return "/".join(path.split("/")[-2:]).split(".")[0] + ".pt"


def shared_names(paths: Sequence[str]) -> dict[str, list[str]]:
    """Released names that more than one photograph has, with their photographs."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(released_name(path), []).append(path)
    return {name: members for name, members in by_name.items() if len(members) > 1}


def check_class_count(num_classes: int, where: str) -> None:
    """Refuses numbers of classes that float16 cannot tell apart.

    Raises:
        LabelError: above 2,049 classes.
    """
    if num_classes > LARGEST_CLASS + 1:
        raise LabelError(
            f"{where}: {num_classes} classes, but the released layout stores class ids as float16, which is exact up to "
            f"{LARGEST_CLASS} only. Use the shards instead."
        )


def write_released(path: Path, scores: NDArray[np.float16], classes: NDArray[Any], *, transposed: bool) -> None:
    """Writes one photograph's label.

    Args:
        path: of the file; folders are made.
        scores, classes: (rows, cols, k), rows down and columns right.
        transposed: whether axis 2 of the file runs right and axis 3 down.

    Raises:
        OutputError: the file cannot be written.
    """
    import torch

    planes = np.stack([scores, classes.astype(np.float16)])  # (2, rows, cols, k)
    axes = (0, 3, 2, 1) if transposed else (0, 3, 1, 2)
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(planes.transpose(axes))), buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}). Free space or permission is needed there."
        ) from error


def parse_released(
    content: bytes, where: str, num_classes: int, shape: tuple[int, int, int] | None = None
) -> tuple[NDArray[np.float16], NDArray[np.uint16]]:
    """Takes one file apart.

    Args:
        content: of the file.
        where: names it in errors.
        num_classes: class ids must lie below.
        shape: axes 2 and 3 of the file and k, as in the files before it.

    Returns:
        scores and classes (axis 2 of the file, axis 3, k), best first; sorted here where the file is not.

    Raises:
        LabelError: what the file holds is no label, or not of this shape and these classes.
    """
    values = _load(content, where).numpy()
    found = (*values.shape[2:], values.shape[1])
    if shape is not None and found != shape:
        raise LabelError(
            f"{where}: its map is (H, W, k) {found}, those before it are {shape}: labels of two makings. Import them apart."
        )
    scores, numbers = (plane.transpose(1, 2, 0) for plane in values)
    if not np.isfinite(scores).all():
        raise LabelError(f"{where}: a logit is not finite. Copy the file again, or leave it out.")
    in_range = (numbers >= 0) & (numbers < min(num_classes, LARGEST_CLASS + 1)) & (numbers == np.floor(numbers))
    if not in_range.all():
        raise LabelError(
            f"{where}: class id {float(numbers[~in_range][0]):g}, expected a whole number from 0 to {num_classes - 1}: labels "
            "of other classes than the manifest's, or planes in another order."
        )
    classes = numbers.astype(np.uint16)
    ascending = np.sort(classes, axis=-1)
    if (ascending[..., 1:] == ascending[..., :-1]).any():
        raise LabelError(f"{where}: a class stands twice in one cell, so its ids are not those of the {found[2]} best.")
    if (scores[..., 1:] > scores[..., :-1]).any():
        order = np.argsort(-scores, axis=-1, kind="stable")
        scores, classes = np.take_along_axis(scores, order, -1), np.take_along_axis(classes, order, -1)
    return np.ascontiguousarray(scores), np.ascontiguousarray(classes)


def _load(content: bytes, where: str) -> Any:
    """The tensor of a file; nothing in it is executed.

    Raises:
        LabelError: no tensor of the released layout.
    """
    import torch

    try:
        if content.startswith(ZIP_BEGINS):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _check_size(sum(info.file_size for info in archive.infolist()), where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is for who made the file
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except LabelError:
        raise
    except Exception as error:  # noqa: BLE001 - torch's unpickler raises almost any type on damaged or hostile bytes
        lines = str(error).split("\n")
        hostile = "weights only" in lines[0].lower()
        reason = "it wants to run code, which is refused" if hostile else f"damaged: {type(error).__name__} {lines[0]}"
        raise LabelError(
            f"{where}: cannot be read as a tensor ({reason[:160]}). Copy the file again; do not open it otherwise."
        ) from None
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        raise LabelError(f"{where}: holds a {type(value).__name__}, expected one float16 tensor (2, k, H, W).")
    shape = tuple(value.shape)
    if value.dtype != torch.float16 or value.ndim != 4 or shape[0] != 2 or not all(0 < size <= 4096 for size in shape):
        raise LabelError(
            f"{where}: holds {str(value.dtype).removeprefix('torch.')} {shape}, expected float16 (2, k, H, W)."
        )
    if 2 * value.numel() > len(content):  # a file may promise with strides of 0 what it does not hold
        raise LabelError(f"{where}: promises {shape}, more than its {len(content)} bytes hold. Copy the file again.")
    return value


class ReleasedTree:
    """A tree of released files: a folder, an uncompressed tar or a zip, read without unpacking.

    Files are found by their last folder and name, whatever folders an archive has around them. Keeps 24 bytes a file of a
    tar in memory; Python's zip reader keeps some 700.

    Raises:
        LabelError: no such place, or a kind of file that has no random access.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: dict[str, frozenset[str]] = {}
        self._zip: zipfile.ZipFile | None = None
        self._tar: int | None = None
        if path.is_dir():
            return
        if not path.is_file():
            raise LabelError(f"released labels {path}: no such folder or archive. Correct the path.")
        with open(path, "rb") as file:
            begins = file.read(len(ZIP_BEGINS))  # zipfile.is_zipfile takes a tar of .pt files, which are zips, for one
        if begins == ZIP_BEGINS:
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise LabelError(f"released labels {path}: not a whole zip ({error}). Copy it again.") from None
            self._index((info.filename, place, info.file_size) for place, info in enumerate(self._zip.infolist()))
            return
        self._index(self._list_tar())
        self._tar = os.open(path, os.O_RDONLY)

    def _list_tar(self) -> Iterator[tuple[str, int, int]]:
        begun = False
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in forward_members(archive, self._damaged):
                    begun = True
                    if member.isfile():
                        yield member.name, member.offset_data, member.size
                    archive.members.clear()  # type: ignore[attr-defined]  # 1.28 million of them would take 2 GB
        except TAR_ERRORS as error:
            if begun:
                raise LabelError(f"released labels {self.path}: cut off ({error}). Copy it again.") from None
            raise LabelError(
                f"released labels {self.path}: neither a folder nor a zip nor an uncompressed tar ({error}). "
                "Unpack it, or take the compression off (gunzip)."
            ) from None

    def _damaged(self, member: tarfile.TarInfo) -> LabelError:
        found = f"{member.name!r} has {member.size} bytes"
        return LabelError(f"released labels {self.path}: cut off ({found}). Copy it again.")

    def _index(self, members: Iterable[tuple[str, int, int]]) -> None:
        """Keeps the hash of each file's last two names with its place and size, in the order of the hashes."""
        labels = ((_key(name), place, size) for name, place, size in members if name.endswith(".pt"))
        table = np.fromiter(labels, dtype=[("key", np.uint64), ("place", np.int64), ("size", np.int64)])
        table.sort(order="key")
        self._keys, self._places, self._sizes = table["key"].copy(), table["place"], table["size"]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise LabelError(
                f"released labels {self.path}: {len(twice)} files have the folder and name of another one. Pack one split only."
            )

    def __contains__(self, name: str) -> bool:
        if self._archived:
            return self._find(name) is not None
        folder, file = name.split("/") if "/" in name else ("", name)
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(entry.name for entry in os.scandir(self.path / folder))
            except OSError:
                self._listed[folder] = frozenset()
        return file in self._listed[folder]

    def read(self, name: str) -> bytes:
        """Bytes of a file that is there.

        Raises:
            LabelError: it is too large for a label, cut off or cannot be read.
        """
        where = self.where(name)
        try:
            if self._archived:
                content = self._read_member(name, where)
            else:
                with open(self.path / name, "rb") as file:
                    content = file.read(LARGEST_FILE_BYTES + 1)  # whatever the file says of its size
                _check_size(len(content), where)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise LabelError(f"{where}: cannot be read ({error}). Copy it again.") from None
        return content

    def where(self, name: str) -> str:
        """Names a file in messages."""
        return f"{self.path}:{name}" if self._archived else str(self.path / name)

    @property
    def _archived(self) -> bool:
        return self._zip is not None or self._tar is not None

    def _find(self, name: str) -> int | None:
        key = np.uint64(sample_id(name))
        index = int(np.searchsorted(self._keys, key))
        return index if index < len(self._keys) and self._keys[index] == key else None

    def _read_member(self, name: str, where: str) -> bytes:
        index = self._find(name)
        assert index is not None
        size_bytes = int(self._sizes[index])
        _check_size(size_bytes, where)
        if self._zip is not None:
            with self._zip.open(self._zip.infolist()[int(self._places[index])]) as member:
                content = member.read(size_bytes + 1)
        else:
            assert self._tar is not None
            content = os.pread(self._tar, size_bytes, int(self._places[index]))
        if len(content) != size_bytes:
            raise LabelError(f"{where}: {len(content)} bytes, the archive says {size_bytes}: cut off. Copy it again.")
        return content


def _key(name: str) -> int:
    return sample_id("/".join(name.split("/")[-2:]))


def _check_size(size_bytes: int, where: str) -> None:
    if size_bytes > LARGEST_FILE_BYTES:
        raise LabelError(f"{where}: {size_bytes} bytes, too large for a label of one photograph. Leave the file out.")
