"""Shards of labels, format version 1: written whole or not at all, read back, verified.

Guarantees that a shard is whole or absent, holds exactly the photographs asked for, and that damage is an error and never
a wrong label. Written by the annotate stage (closed parts, then assembled), read by `store` and `command`; never loads torch.
docs/label-format.md describes the format for readers without this code.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.files import sha256_of, write_bytes
from .attributes import (
    FORMAT_VERSION,
    JSON_FIELDS,
    ShardAttributes,
    ShardSummary,
    marker_of,
    marker_path,
    read_marker,
    shard_file_name,
)
from .records import (
    STATUS_OK,
    STATUS_PENDING,
    STATUS_UNREADABLE,
    LabelRows,
    RecordLayout,
    check_values,
    checked_rows,
    layout_of,
    named,
)
from .shard_file import COLUMN_CHUNK, MAX_REASON_BYTES, PART_REMEDY, REMEDY, ShardFile

__all__ = [
    "FORMAT_VERSION",
    "STATUS_OK",
    "STATUS_PENDING",
    "STATUS_UNREADABLE",
    "LabelRows",
    "ShardAssembly",
    "ShardAttributes",
    "ShardFile",
    "ShardSummary",
    "assemble_parts",
    "marker_of",
    "marker_path",
    "read_attributes",
    "read_index",
    "read_marker",
    "read_part",
    "read_rows",
    "read_statuses",
    "shard_file_name",
    "verify_shard",
    "write_part",
]

_LIBVER = ("v110", "v110")  # checksums HDF5's own metadata and costs 15 instead of 48 bytes per chunk
# fletcher32, because HDF5 stores a chunk that gzip cannot shrink as it is, without zlib's checksum
_COLUMN_FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}


def write_part(path: Path, rows: LabelRows, storage: str = "compact") -> None:
    """Writes a small closed file of labels, whole or not at all.

    Args:
        path: of the part.
        rows: the labels.
        storage: `compact` or `fast`; that of the shard that it will become saves work.

    Raises:
        LabelError: shapes or values that are no labels: non-finite scores, scores beyond float16, no reason.
        OutputError: the folder cannot be written.
    """
    rows = checked_rows(rows, str(path))
    layout = layout_of(rows, storage)
    with _file_in_memory() as file:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["storage"] = np.bytes_(storage.encode())
        for name in ("rows", "cols", "k", "class_words"):
            file.attrs[name] = getattr(layout, name)
        write = _create_records(file, layout, len(rows))
        for row, chunk in enumerate(layout.encode(layout.pack(rows))):
            write(row, chunk)
        _write_columns(file, rows.sample_id, rows.status, rows.reason)
        image = _finished_image(file)
    write_bytes(path, image)


def read_part(path: Path) -> LabelRows:
    """Reads a part.

    Raises:
        LabelError: missing, damaged, or of another format version.
    """
    with ShardFile(path, part=True) as part:
        return checked_rows(part.rows(range(part.count)), f"part {path}")


class ShardAssembly:
    """Makes a shard of its parts, row by row in the order of `expected_ids`; each part as soon as it is there.

    Holds the shard's bytes in memory twice: 140 MB for 20,000 photographs of ImageNet.

    Args:
        destination: the shard's path; written by `finish` under a temporary name beside it, synced and renamed.
        attributes: stored in the file.
        expected_ids: uint64 (n,), the photographs the shard must hold.

    Raises:
        LabelError: an id is expected twice.
    """

    def __init__(self, destination: Path, attributes: ShardAttributes, expected_ids: NDArray[np.uint64]) -> None:
        self.destination, self.attributes = destination, attributes
        self._expected = np.asarray(expected_ids, dtype=np.uint64)
        self._order = np.argsort(self._expected, kind="stable")
        self._in_order = self._expected[self._order]
        if np.any(self._in_order[1:] == self._in_order[:-1]):
            raise LabelError(
                f"shard {destination}: an id is expected twice; two paths of the manifest have one sample id."
            )
        self._filled = np.zeros(len(self._expected), dtype=bool)
        self._status = np.full(len(self._expected), STATUS_PENDING, dtype=np.uint8)
        self._reason = [""] * len(self._expected)
        self._layout: RecordLayout | None = None
        self._file = _file_in_memory()

    def __enter__(self) -> ShardAssembly:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, path: Path) -> None:
        """Copies a part's rows.

        Raises:
            LabelError: a photograph of another shard or one that is there already, maps that do not fit, or damage.
        """
        with ShardFile(path, part=True) as part:
            place = self._places(path, part.column("sample_id"))
            layout = self._begin(part.layout.has_tail)
            _check_fits(part, layout)
            for start, chunks, rows in part.blocks():
                check_values(rows, self.attributes.num_classes, f"part {path}", PART_REMEDY)
                block = place[start : start + len(rows)]
                self._status[block] = rows.status
                if part.layout != layout:
                    chunks = list(layout.encode(layout.pack(rows)))
                for row, chunk, text in zip(block.tolist(), chunks, rows.reason, strict=True):
                    self._write(row, chunk)
                    self._reason[row] = text

    def finish(self) -> ShardSummary:
        """Writes the shard.

        Raises:
            LabelError: photographs are missing.
            OutputError: the folder cannot be written.
        """
        if not self._filled.all():
            raise LabelError(
                f"shard {self.destination}: {int((~self._filled).sum())} of {len(self._expected)} samples are in no part, the "
                f"first is {named(self._expected[~self._filled])}. Run snakemake labels."
            )
        if self._layout is None:  # a shard without photographs
            self._begin(has_tail=False)
        _write_columns(self._file, self._expected, self._status, self._reason)
        image = _finished_image(self._file)
        write_bytes(self.destination, image)
        return summary_of(self._status, len(image), hashlib.sha256(image).hexdigest())

    def _begin(self, has_tail: bool) -> RecordLayout:
        """Creates the records when the first part says whether there are tails."""
        if self._layout is None:
            self._layout = self.attributes.layout(has_tail)
            _write_attributes(self._file, self.attributes)
            self._write = _create_records(self._file, self._layout, len(self._expected))
        elif has_tail != self._layout.has_tail:
            raise LabelError(
                f"shard {self.destination}: some parts have a tail and some have none. Delete its parts, run again."
            )
        return self._layout

    def _places(self, path: Path, identifiers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Place of each of a part's rows in the shard."""
        found = np.searchsorted(self._in_order, identifiers)
        known = np.zeros(len(identifiers), dtype=bool)
        in_range = found < len(self._expected)
        known[in_range] = self._in_order[found[in_range]] == identifiers[in_range]
        if not known.all():
            raise LabelError(
                f"part {path}: sample {named(identifiers[~known])} does not belong to {self.destination.name}. {PART_REMEDY}"
            )
        place: NDArray[np.int64] = self._order[found]
        twice = self._filled[place]
        if len(np.unique(place)) != len(place) or twice.any():
            again = identifiers[twice] if twice.any() else identifiers
            raise LabelError(f"part {path}: sample {named(again)} is there twice. {PART_REMEDY}")
        self._filled[place] = True
        return place


def assemble_parts(
    parts: Sequence[Path], destination: Path, attributes: ShardAttributes, expected_ids: NDArray[np.uint64]
) -> ShardSummary:
    """Makes a shard of parts that are all there, in any order.

    Raises:
        LabelError, OutputError: as `ShardAssembly`.
    """
    with ShardAssembly(destination, attributes, expected_ids) as assembly:
        for part in parts:
            assembly.add(part)
        return assembly.finish()


def read_attributes(path: Path) -> ShardAttributes:
    """Reads what a shard says about itself; the format version is checked before anything else.

    Raises:
        LabelError: missing, no HDF5 file, truncated, incomplete, or of another format version.
    """
    with ShardFile(path) as shard:
        assert shard.attributes is not None
        return shard.attributes


def read_statuses(path: Path) -> ShardSummary:
    """Counts a shard's rows by status without reading its maps; the sha256 stays empty.

    Raises:
        LabelError: as `read_attributes`.
    """
    with ShardFile(path) as shard:
        return summary_of(shard.column("status"), path.stat().st_size, "")


def read_index(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Sample ids and statuses of a shard in the file's order, without reading its maps.

    Raises:
        LabelError: as `read_attributes`.
    """
    with ShardFile(path) as shard:
        return shard.column("sample_id"), shard.column("status")


def read_rows(path: Path, positions: NDArray[np.int64]) -> LabelRows:
    """Some rows of one shard, whatever else lies in its folder; holds no more than these in memory.

    Args:
        path: of the shard.
        positions: int64 (n,), rows of the file, in any order.

    Returns:
        the rows in the order of `positions`.

    Raises:
        LabelError: as `read_attributes`, or a row whose checksum is wrong.
    """
    with ShardFile(path) as shard:
        return shard.rows(positions)


def verify_shard(path: Path, expected_sha256: str | None = None) -> ShardSummary:
    """Reads every row of a shard and checks it.

    Args:
        path: of the shard.
        expected_sha256: of the marker; with it, every changed bit is found, also in HDF5's own structures.

    Raises:
        LabelError: another digest, a failed checksum, shapes that contradict the attributes, classes outside
            [0, num_classes) or twice in one cell, scores that are not finite or not best first, an id twice or in the
            wrong shard.
    """
    if not path.is_file():
        raise LabelError(f"shard {path}: missing. Run snakemake labels.")
    digest = sha256_of(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise LabelError(
            f"shard {path}: sha256 {digest[:16]}..., its marker says {expected_sha256[:16]}...: damaged or replaced. {REMEDY}"
        )
    with ShardFile(path) as shard:
        attributes = shard.attributes
        assert attributes is not None
        check_ids(shard.column("sample_id"), attributes, path)
        for _, _, rows in shard.blocks():
            check_values(rows, attributes.num_classes, f"shard {path}", REMEDY)
        return summary_of(shard.column("status"), path.stat().st_size, digest)


def check_ids(identifiers: NDArray[np.uint64], attributes: ShardAttributes, path: Path) -> None:
    """Ids of a shard: each once, each modulo the number of shards the shard's own number.

    Raises:
        LabelError: names the first that is wrong.
    """
    foreign = identifiers % np.uint64(attributes.total) != np.uint64(attributes.shard)
    if foreign.any():
        raise LabelError(
            f"shard {path}: sample {named(identifiers[foreign])} belongs into another shard than "
            f"{attributes.shard} of {attributes.total}. {REMEDY}"
        )
    if len(np.unique(identifiers)) != len(identifiers):
        raise LabelError(f"shard {path}: holds a sample id twice. {REMEDY}")


# --- writing HDF5 ---


def _file_in_memory() -> Any:
    """A new HDF5 file that never touches the disk: where HDF5 itself meets a full disk, it takes the process down."""
    name = f"{uuid.uuid4().hex}.h5"  # HDF5 knows its open files by name
    return h5py.File(name, "w", driver="core", backing_store=False, libver=_LIBVER)


def _finished_image(file: Any) -> bytes:
    """The bytes of a file, with the mark that it is whole."""
    file.attrs["complete"] = True
    file.flush()
    image: bytes = file.id.get_file_image()
    return image


def _write_attributes(file: Any, attributes: ShardAttributes) -> None:
    file.attrs["format_version"] = FORMAT_VERSION
    for field in fields(attributes):
        value = getattr(attributes, field.name)
        if field.type in ("int", "float"):
            file.attrs[field.name] = float(value) if field.type == "float" else int(value)
        else:
            text = json.dumps(value, sort_keys=True) if field.name in JSON_FIELDS else value
            # texts of fixed length lie in checksummed metadata, those of variable length would not
            file.attrs[field.name] = np.bytes_(text.encode("utf-8") or b"\0")


def _create_records(file: Any, layout: RecordLayout, count: int) -> Callable[[int, bytes], None]:
    """Creates the data set of records, one chunk each; gives a function that writes one row's encoded record."""
    # HDF5 refuses chunks of an empty data set
    options: dict[str, Any] = {"chunks": (1, layout.words), **layout.options} if count else {}
    records = file.create_dataset("records", shape=(count, layout.words), dtype="<u2", **options)

    def write(row: int, chunk: bytes) -> None:
        if layout.storage == "fast":
            records[row] = np.frombuffer(chunk, dtype="<u2", count=layout.words)  # HDF5 adds its checksum
        else:
            records.id.write_direct_chunk((row, 0), chunk)

    return write


def _write_columns(file: Any, sample_id: NDArray[np.uint64], status: NDArray[np.uint8], reason: Sequence[str]) -> None:
    texts = np.array([_encoded(text) for text in reason] or [b""], dtype=np.bytes_)[: len(reason)]
    text_type = h5py.string_dtype("utf-8", max(texts.dtype.itemsize, 1))
    columns: dict[str, NDArray[Any]] = {
        "sample_id": sample_id.astype("<u8"),
        "status": status,
        "reason": texts.astype(text_type),
    }
    for name, values in columns.items():
        chunks = (min(len(values), COLUMN_CHUNK),)
        file.create_dataset(name, data=values, **({"chunks": chunks, **_COLUMN_FILTERS} if len(values) else {}))


def _encoded(text: str) -> bytes:
    """UTF-8 of at most 400 bytes; HDF5 ends a text at a zero byte."""
    cut = text.replace("\x00", " ").encode("utf-8", "replace")[:MAX_REASON_BYTES]
    return cut.decode("utf-8", "ignore").encode("utf-8")


def summary_of(status: NDArray[np.uint8], size_bytes: int, digest: str) -> ShardSummary:
    """Counts of rows by status."""
    counts = np.bincount(status, minlength=3)
    return ShardSummary(
        images=len(status),
        ok=int(counts[STATUS_OK]),
        unreadable=int(counts[STATUS_UNREADABLE]),
        pending=int(counts[STATUS_PENDING]),
        size_bytes=size_bytes,
        sha256=digest,
    )


# --- checks of an assembly ---


def _check_fits(part: ShardFile, layout: RecordLayout) -> None:
    found, expected = (
        f"(rows, cols, k) {(one.rows, one.cols, one.k)} with {16 * one.class_words}-bit classes"
        for one in (part.layout, layout)
    )
    if found != expected:
        raise LabelError(f"part {part.path}: maps are {found}, the shard's are {expected}. {PART_REMEDY}")
