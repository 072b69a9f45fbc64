"""Label maps by photograph: one folder of shards opened as a mapping from sample id to label.

Guarantees that all shards are there, finished, and of one annotator; a label that is missing is an error, never an empty map.
Used by training, fidelity and drawing, in any number of worker processes (fork or spawn) and threads; never loads torch.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.seeds import sample_id
from .attributes import ShardAttributes, ShardSummary, marker_of, read_marker, shard_file_name
from .records import LabelRows, concatenate_rows
from .shard_file import DAMAGE, REMEDY, ShardFile
from .shards import check_ids, summary_of, verify_shard

_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<shard>\d{5,})-of-(?P<total>\d{5,})\.h5")
# what may differ between the shards of one annotator; the manifest's digest is of each shard's own photographs
OWN_ATTRIBUTES = frozenset({"shard", "created", "libraries", "manifest_digest", "storage"})
_MAX_OPEN_FILES = 128


@dataclass(slots=True)
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


class _OpenFiles:
    """Shards open in one process; a forked child makes its own, because a lock may have been held while forking."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self._files: dict[Path, ShardFile] = {}

    def get(self, path: Path) -> ShardFile:
        """The open shard; to be called with the lock held."""
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            file = ShardFile(path)
        self._files[path] = file  # last in, so the first is the one used longest ago
        return file


class LabelStore:
    """The labels of one annotator for one split.

    Keeps 14 bytes per photograph in memory; maps are read when asked for. Pickles to worker processes.

    Attributes:
        path: the folder.
        split: the split.
        attributes: of the first shard; those of all shards agree, but for OWN_ATTRIBUTES.

    Args:
        path: folder of the shards.
        split: `train`, `val`...
        manifest_digests: one per shard, of the manifest that the labels must have been made from; None: any.

    Raises:
        LabelError: no such folder or split; a shard is missing, half-written, of another size, annotator, version or data set.

    Example:
        store = LabelStore("results/labels/nfnet_f6-1a2b3c4d", split="train")
        label = store[store.id_for("n01440764/a.JPEG")]
    """

    def __init__(self, path: str | os.PathLike[str], split: str, manifest_digests: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        self.split = split
        self._shards = find_shards(self.path, split)
        if manifest_digests is not None and len(manifest_digests) != len(self._shards):
            raise LabelError(
                f"labels {self.path}: {len(self._shards)} shards, the manifest has {len(manifest_digests)}: labels of another "
                "making. Give the right folder, or run snakemake labels."
            )
        self._open_files = _OpenFiles()
        self._load_index(manifest_digests)

    def _load_index(self, manifest_digests: Sequence[str] | None) -> None:
        identifiers: list[NDArray[np.uint64]] = []
        statuses: list[NDArray[np.uint8]] = []
        said: list[ShardAttributes] = []
        tail: bool | None = None
        for number, path in enumerate(self._shards):
            with ShardFile(path) as shard:
                attributes = shard.attributes
                assert attributes is not None
                identifiers.append(shard.column("sample_id"))
                statuses.append(shard.column("status"))
                said.append(attributes)
                self._check_shard(path, number, attributes, said[0])
                if manifest_digests is not None and attributes.manifest_digest != manifest_digests[number]:
                    raise LabelError(
                        f"shard {path}: made from other photographs than the manifest lists (digest "
                        f"{attributes.manifest_digest}, expected {manifest_digests[number]}). {REMEDY}"
                    )
                check_marker(path, attributes, shard.column("status"))
                check_ids(identifiers[-1], attributes, path)
                if shard.count:
                    if tail not in (None, shard.layout.has_tail):
                        raise LabelError(f"shard {path}: its tail is not as in the shards before it. {REMEDY}")
                    tail = shard.layout.has_tail
        self.attributes = said[0]
        self._has_tail = bool(tail)
        self._layouts = [attributes.layout(self._has_tail) for attributes in said]
        self._starts = [0, *itertools.accumulate(len(column) for column in identifiers)]
        joined = np.concatenate(identifiers)
        # position: of the row in the shards laid end to end; 32 bits hold it
        self._position = np.argsort(joined, kind="stable").astype(np.uint32)
        self._ids = joined[self._position]
        self._ids.setflags(write=False)
        self._status = np.concatenate(statuses)[self._position]
        # ids are evenly spread hashes: a table over their first bits leaves about four to look at, however many there are
        bits = max(len(self._ids) // 4, 1).bit_length()
        self._bucket_shift = 64 - bits
        edges = np.arange(2**bits, dtype=np.uint64) << np.uint64(self._bucket_shift)
        self._buckets = np.append(np.searchsorted(self._ids, edges), len(self._ids)).astype(np.uint32)

    def _check_shard(self, shard: Path, number: int, attributes: ShardAttributes, first: ShardAttributes) -> None:
        check_name(shard, attributes)
        for field in fields(ShardAttributes):
            if field.name in OWN_ATTRIBUTES:
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
        """Part of the photograph that the maps cover: `squash` (all of it) or `centre_crop`."""
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

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __contains__(self, identifier: object) -> bool:
        if not isinstance(identifier, int | np.integer) or not 0 <= int(identifier) < 2**64:
            return False
        return self._index_of(int(identifier)) is not None

    def _index_of(self, identifier: int) -> int | None:
        """Place among the sorted ids, in constant time."""
        bucket = identifier >> self._bucket_shift
        start = int(self._buckets[bucket])
        candidates: list[int] = self._ids[start : self._buckets[bucket + 1]].tolist()
        return start + candidates.index(identifier) if identifier in candidates else None

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
        index = self._index_of(_as_id(identifier))
        if index is None:
            raise self._absent(int(identifier), 1, 1)
        rows = self._read(index)
        height, width = rows.image_size[0].tolist()
        return Label(
            sample_id=int(identifier),
            scores=rows.scores[0],
            classes=rows.classes[0],
            tail=None if rows.tail is None else rows.tail[0],
            image_size=(height, width),
            status=int(rows.status[0]),
            reason=rows.reason[0],
        )

    def get_many(self, identifiers: Iterable[int] | NDArray[np.uint64]) -> LabelRows:
        """Reads labels, in the order asked for.

        Raises:
            LabelError: an id without a label, or a shard that was removed or damaged since.
        """
        indices = self._find(_as_ids(identifiers))
        if not len(indices):
            layout = self._layouts[0]
            return layout.unpack(np.empty((0, layout.words), dtype="<u2"), np.empty(0, dtype=np.uint8), [])
        order = np.argsort(self._position[indices], kind="stable")  # shard by shard, in the file's order
        return concatenate_rows([self._read(index) for index in indices[order].tolist()]).take(np.argsort(order))

    def _read(self, index: int) -> LabelRows:
        """One label by its place among the sorted ids."""
        number, row = self._place(int(self._position[index]))
        status, reason, layout = self._status[index : index + 1], "", self._layouts[number]
        open_files = self._files_of_this_process()
        try:
            with open_files.lock:
                shard = open_files.get(self._shards[number])
                chunk = shard.chunk(row)
                if status[0]:
                    reason = shard.reasons()[row]
            rows = layout.unpack(layout.decode(chunk)[None], status, [reason])
            if rows.sample_id[0] != self._ids[index]:
                raise ValueError("the file was replaced since the store was opened")
            if rows.classes.max() >= self.num_classes:
                raise ValueError(f"class {rows.classes.max()}, expected below {self.num_classes}")
        except DAMAGE as error:
            raise LabelError(
                f"shard {self._shards[number]}: row {row} cannot be read, damaged ({error}). {REMEDY}"
            ) from error
        return rows

    def status_of(
        self, identifiers: Iterable[int] | NDArray[np.uint64], *, absent: int | None = None
    ) -> NDArray[np.uint8]:
        """Status of each photograph, uint8 (n,), from memory.

        Args:
            identifiers: sample ids.
            absent: what an id that no shard has counts as; None: it is an error.

        Raises:
            LabelError: an id that no shard has.
        """
        wanted = _as_ids(identifiers)
        if absent is None:
            return self._status[self._find(wanted)]
        known = np.isin(wanted, self._ids)
        found = np.full(len(wanted), absent, dtype=np.uint8)
        found[known] = self._status[self._find(wanted[known])]
        return found

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
            raise self._absent(int(absent[0]), len(absent), len(wanted))
        return indices

    def _absent(self, identifier: int, absent: int, asked: int) -> LabelError:
        return LabelError(
            f"labels {self.path}: no label for sample {identifier:#018x} in split {self.split!r} "
            f"({absent} of {asked} asked for are absent). The data set has changed, or these are labels of "
            "another one: run snakemake labels."
        )

    def _place(self, position: int) -> tuple[int, int]:
        """Number of the shard, and the row in it."""
        number = bisect.bisect_right(self._starts, position) - 1
        return number, position - self._starts[number]

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


def check_marker(path: Path, attributes: ShardAttributes, status: NDArray[np.uint8]) -> None:
    """Compares a shard with its marker in what costs no reading of the maps; `verify` compares the digest.

    Raises:
        LabelError: no marker, or one that says something else.
    """
    marker = read_marker(path)
    size_bytes = path.stat().st_size
    summary = summary_of(status, size_bytes, marker["sha256"])
    expected = marker_of(attributes, summary, 0.0)
    for name, value in expected.items():
        if name in marker and name != "seconds" and marker[name] != value:
            raise LabelError(f"shard {path}: {name} is {value}, its marker says {marker[name]}. {REMEDY}")


def check_name(path: Path, attributes: ShardAttributes) -> None:
    """A shard must lie under the name that it was written as.

    Raises:
        LabelError: it does not.
    """
    said = shard_file_name(attributes.split, attributes.shard, attributes.total)
    if said != path.name:
        raise LabelError(f"shard {path}: was written as {said}, its name is wrong. {REMEDY}")


def _as_ids(identifiers: Iterable[int] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    if isinstance(identifiers, np.ndarray) and identifiers.dtype == np.uint64:
        return identifiers.reshape(-1)
    if isinstance(identifiers, str) or not isinstance(identifiers, Iterable):
        raise _no_id(identifiers)
    return np.fromiter((_as_id(identifier) for identifier in identifiers), dtype=np.uint64)


def _as_id(identifier: object) -> int:
    if not isinstance(identifier, int | np.integer) or not 0 <= int(identifier) < 2**64:
        raise _no_id(identifier)
    return int(identifier)


def _no_id(found: object) -> LabelError:
    return LabelError(
        f"{str(found)[:80]!r} is no sample id: ids are whole numbers from 0 to 2**64 - 1, get_many takes several of them. "
        "For a path ask id_for(path)."
    )
