"""Label maps by photograph: one folder of shards opened as a mapping from sample id to label.

Guarantees that all shards are there, finished, and of one annotator; a label that is missing is an error, never an empty map.
Used by training, fidelity and drawing, in any number of worker processes (fork or spawn) and threads; never loads torch.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.seeds import sample_id
from .shards import (
    REMEDY,
    ShardAttributes,
    ShardSummary,
    attributes_of,
    open_shard,
    read_marker,
    shard_file_name,
    verify_shard,
)

_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<shard>\d{5,})-of-(?P<total>\d{5,})\.h5")
# what may differ between the shards of one annotator; the manifest's digest is of each shard's own photographs
_OWN_ATTRIBUTES = frozenset({"shard", "created", "libraries", "manifest_digest"})
_MAX_OPEN_FILES = 128


@dataclass(frozen=True)
class Label:
    """The stored label of one photograph.

    Attributes:
        sample_id: of the photograph.
        scores: float16 (rows, cols, k), logits, best first.
        classes: uint16 or uint32 (rows, cols, k).
        tail: float16 (rows, cols), log of the summed exp of the logits that are not stored; or None.
        image_size: height and width in px.
        status: STATUS_OK, STATUS_UNREADABLE or STATUS_PENDING; the map is zeros unless ok.
        reason: why not ok.
    """

    sample_id: int
    scores: NDArray[np.float16]
    classes: NDArray[Any]
    tail: NDArray[np.float16] | None
    image_size: tuple[int, int]
    status: int
    reason: str


@dataclass(frozen=True)
class LabelBatch:
    """Labels of n photographs, in the order asked for; the fields of `Label`, stacked.

    Attributes:
        sample_id: uint64 (n,).
        scores: float16 (n, rows, cols, k).
        classes: uint16 or uint32 (n, rows, cols, k).
        tail: float16 (n, rows, cols) or None.
        image_size: uint32 (n, 2), height and width in px.
        status: uint8 (n,).
        reason: n texts.
    """

    sample_id: NDArray[np.uint64]
    scores: NDArray[np.float16]
    classes: NDArray[Any]
    tail: NDArray[np.float16] | None
    image_size: NDArray[np.uint32]
    status: NDArray[np.uint8]
    reason: list[str]

    def __len__(self) -> int:
        return len(self.sample_id)


class _OpenFiles:
    """HDF5 files of one process; a forked child makes its own, because a lock may have been held while forking."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self._files: dict[Path, Any] = {}

    def get(self, path: Path) -> Any:
        """The open file; to be called with the lock held."""
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            try:
                file = h5py.File(path, "r", rdcc_nbytes=0)
            except OSError as error:
                raise LabelError(
                    f"shard {path}: missing or damaged since the store was opened ({error}). {REMEDY}"
                ) from error
        self._files[path] = file  # last in, so the first is the one used longest ago
        return file


class LabelStore:
    """The labels of one annotator for one split.

    Keeps 13 bytes per photograph in memory; maps are read when asked for. Pickles to worker processes.

    Attributes:
        path: the folder.
        split: the split.
        attributes: of the first shard; those of all shards agree, but for shard, created, libraries, manifest_digest.

    Args:
        path: folder of the shards.
        split: `train`, `val`...

    Raises:
        LabelError: no such folder or split; a shard is missing, half-written, of another size, annotator or version.

    Example:
        store = LabelStore("results/labels/nfnet_f6-1a2b3c4d", split="train")
        label = store[store.id_for("n01440764/a.JPEG")]
    """

    def __init__(self, path: str | os.PathLike[str], split: str) -> None:
        self.path = Path(path)
        self.split = split
        self._shards = find_shards(self.path, split)
        self._open_files = _OpenFiles()
        self._load_index()

    def _load_index(self) -> None:
        identifiers: list[NDArray[np.uint64]] = []
        statuses: list[NDArray[np.uint8]] = []
        first: ShardAttributes | None = None
        tail: bool | None = None
        for number, shard in enumerate(self._shards):
            with open_shard(shard) as file:
                attributes = attributes_of(file, shard)
                identifiers.append(file["sample_id"][:])
                statuses.append(file["status"][:])
                has_tail = "tail" in file
            first = first or attributes
            self._check_shard(shard, number, attributes, first)
            _check_marker(shard, attributes, len(identifiers[-1]))
            if len(identifiers[-1]):
                if tail not in (None, has_tail):
                    raise LabelError(f"shard {shard}: its tail is not as in the shards before it. {REMEDY}")
                tail = has_tail
        assert first is not None
        self.attributes = first
        self._has_tail = bool(tail)
        lengths = [len(column) for column in identifiers]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        joined = np.concatenate(identifiers)
        # position: of the row in the shards laid end to end; 32 bits hold it
        self._position = np.argsort(joined, kind="stable").astype(np.uint32)
        self._ids = joined[self._position]
        self._ids.setflags(write=False)
        self._status = np.concatenate(statuses)[self._position]
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            shards = sorted(
                {self._place(int(self._position[index + step]))[0].name for index in twice[:1] for step in (0, 1)}
            )
            raise LabelError(
                f"labels {self.path}: sample {int(self._ids[twice[0]]):#018x} is there twice, in {' and '.join(shards)}. "
                "Delete them with their .done markers, then run snakemake labels."
            )

    def _check_shard(self, shard: Path, number: int, attributes: ShardAttributes, first: ShardAttributes) -> None:
        said = shard_file_name(attributes.split, attributes.shard, attributes.total)
        if said != shard.name:
            raise LabelError(f"shard {shard}: was written as {said}, its name is wrong. {REMEDY}")
        for field in fields(ShardAttributes):
            if field.name in _OWN_ATTRIBUTES:
                continue
            found, expected = getattr(attributes, field.name), getattr(first, field.name)
            if found != expected:
                raise LabelError(
                    f"shard {shard}: {field.name} is {found}, but {expected} in {self._shards[0].name}: "
                    f"labels of two makings in one folder. Delete the wrong one and its .done marker, then run snakemake labels."
                )

    @property
    def num_classes(self) -> int:
        """Classes that the annotator knows."""
        return self.attributes.num_classes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the score maps."""
        return self.attributes.rows, self.attributes.cols

    @property
    def k(self) -> int:
        """Classes stored per cell."""
        return self.attributes.k

    @property
    def view(self) -> str:
        """Part of the photograph that the maps cover: `squash` (all of it) or `center_crop`."""
        return self.attributes.view

    @property
    def annotator(self) -> str:
        """Name of the annotator in the configuration."""
        return self.attributes.annotator

    @property
    def has_tail(self) -> bool:
        """Whether the mass of the classes that are not stored is known."""
        return self._has_tail

    @property
    def ids(self) -> NDArray[np.uint64]:
        """uint64 (len,), ascending, read-only."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, identifier: object) -> bool:
        if not isinstance(identifier, int | np.integer) or not 0 <= int(identifier) < 2**64:
            return False
        wanted = np.uint64(identifier)
        index = int(np.searchsorted(self._ids, wanted))
        return index < len(self._ids) and bool(self._ids[index] == wanted)

    def id_for(self, path: str | os.PathLike[str]) -> int:
        """Sample id of a photograph.

        Args:
            path: relative to the data set's root, as in the manifest.

        Raises:
            LabelError: it has no label here.
        """
        relative = PurePosixPath(path).as_posix()
        identifier = sample_id(relative)
        if identifier not in self:
            raise LabelError(
                f"labels {self.path}: no label for {relative!r} in split {self.split!r}. The path must be relative to the "
                "data set's root as in the manifest; for a new photograph run snakemake labels."
            )
        return identifier

    def __getitem__(self, identifier: int) -> Label:
        batch = self.get_many([identifier])
        return Label(
            sample_id=int(identifier),
            scores=batch.scores[0],
            classes=batch.classes[0],
            tail=None if batch.tail is None else batch.tail[0],
            image_size=(int(batch.image_size[0, 0]), int(batch.image_size[0, 1])),
            status=int(batch.status[0]),
            reason=batch.reason[0],
        )

    def get_many(self, identifiers: Iterable[int] | NDArray[np.uint64]) -> LabelBatch:
        """Reads labels, in the order asked for.

        Raises:
            LabelError: an id without a label, or a shard that was removed or damaged since.
        """
        wanted = _as_ids(identifiers)
        indices = self._find(wanted)
        (rows, cols), k = self.grid, self.k
        batch = LabelBatch(
            sample_id=wanted,
            scores=np.empty((len(wanted), rows, cols, k), dtype=np.float16),
            classes=np.empty((len(wanted), rows, cols, k), dtype=self.attributes.class_dtype),
            tail=np.empty((len(wanted), rows, cols), dtype=np.float16) if self._has_tail else None,
            image_size=np.empty((len(wanted), 2), dtype=np.uint32),
            status=self._status[indices],
            reason=[""] * len(wanted),
        )
        positions = self._position[indices].astype(np.int64)
        open_files = self._files_of_this_process()
        with open_files.lock:
            for place in np.argsort(positions, kind="stable").tolist():  # shard by shard, in the file's order
                shard, row = self._place(int(positions[place]))
                file = open_files.get(shard)
                try:
                    _read_row(file, row, batch, place)
                except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                    raise LabelError(f"shard {shard}: row {row} cannot be read, damaged ({error}). {REMEDY}") from error
        return batch

    def status_of(self, identifiers: Iterable[int] | NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Status of each photograph, uint8 (n,), from memory.

        Raises:
            LabelError: an id without a label.
        """
        return self._status[self._find(_as_ids(identifiers))]

    def verify(self) -> list[ShardSummary]:
        """Reads and checks every shard against its marker.

        Raises:
            LabelError: the first damaged shard.
        """
        return [verify_shard(shard, read_marker(shard)["sha256"]) for shard in self._shards]

    def _find(self, wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        indices = np.searchsorted(self._ids, wanted)
        known = indices < len(self._ids)
        known[known] = self._ids[indices[known]] == wanted[known]
        if not known.all():
            absent = wanted[~known]
            raise LabelError(
                f"labels {self.path}: no label for sample {int(absent[0]):#018x} in split {self.split!r} "
                f"({len(absent)} of {len(wanted)} asked for are absent). The data set has changed, or these are labels of "
                "another one: run snakemake labels."
            )
        return indices

    def _place(self, position: int) -> tuple[Path, int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._shards[number], position - int(self._starts[number])

    def _files_of_this_process(self) -> _OpenFiles:
        if self._open_files.pid != os.getpid():
            self._open_files = _OpenFiles()
        return self._open_files

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ids.setflags(write=False)
        self._open_files = _OpenFiles()


def find_shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split in order.

    Raises:
        LabelError: no such folder or split, shards of two totals, or a shard that is missing.
    """
    groups = shards_in(folder)
    found = groups.get(split)
    if not found:
        others = ", ".join(sorted(groups)) or "none"
        raise LabelError(
            f"labels {folder}: no shards of split {split!r}; splits there: {others}. Run snakemake labels."
        )
    missing = missing_shards(found)
    if missing:
        shown = ", ".join(path.name for path in missing[:3])
        raise LabelError(
            f"labels {folder}: {len(missing)} of {len(missing) + len(found)} shards are missing: {shown}"
            f"{'...' if len(missing) > 3 else ''}. Run snakemake labels (delete their .done markers, where there are any)."
        )
    return found


def shards_in(folder: Path) -> dict[str, list[Path]]:
    """All shard files of a folder by split, in order.

    Raises:
        LabelError: no such folder.
    """
    if not folder.is_dir():
        raise LabelError(f"labels {folder}: no such folder. Run snakemake labels, or correct the path.")
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _SHARD_NAME.fullmatch(path.name):
            groups.setdefault(match["split"], []).append(path)
    return groups


def missing_shards(found: Sequence[Path]) -> list[Path]:
    """Shards that the file names of one split promise and that are not there.

    Raises:
        LabelError: the names tell of two totals.
    """
    matches = [match for path in found if (match := _SHARD_NAME.fullmatch(path.name))]
    totals = sorted({int(match["total"]) for match in matches})
    if len(totals) > 1:
        raise LabelError(
            f"labels {found[0].parent}: shards of {' and of '.join(map(str, totals))} in one folder. "
            "Delete those of the wrong total with their .done markers, then run snakemake labels."
        )
    present = {int(match["shard"]) for match in matches}
    split = matches[0]["split"]
    return [
        found[0].with_name(shard_file_name(split, shard, totals[0]))
        for shard in range(totals[0])
        if shard not in present
    ]


def _check_marker(shard: Path, attributes: ShardAttributes, images: int) -> None:
    """Compares a shard with its marker in what costs no reading of the maps; `verify` compares the digest."""
    marker = read_marker(shard)
    found = {
        "labels_digest": attributes.labels_digest,
        "manifest_digest": attributes.manifest_digest,
        "size_bytes": shard.stat().st_size,
        "images": images,
    }
    for name, value in found.items():
        if name in marker and marker[name] != value:
            raise LabelError(f"shard {shard}: {name} is {value}, its marker says {marker[name]}. {REMEDY}")


def _read_row(file: Any, row: int, batch: LabelBatch, place: int) -> None:
    batch.scores[place] = file["scores"][row]
    batch.classes[place] = file["classes"][row]
    if batch.tail is not None:
        batch.tail[place] = file["tail"][row]
    batch.image_size[place] = file["image_size"][row]
    if batch.status[place]:
        batch.reason[place] = bytes(file["reason"][row]).decode("utf-8")
    if file["sample_id"][row] != batch.sample_id[place]:
        raise ValueError("the file was replaced since the store was opened")


def _as_ids(identifiers: Iterable[int] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    if isinstance(identifiers, np.ndarray):
        return identifiers.astype(np.uint64).reshape(-1)
    return np.fromiter((int(identifier) for identifier in identifiers), dtype=np.uint64)
