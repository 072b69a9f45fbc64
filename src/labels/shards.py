"""The shard format, version 1: one HDF5 file per shard that plain h5py reads, with a marker beside it.

Guarantees that a shard is whole or absent, holds exactly the photographs asked for, and that damage is an error and never
a wrong label. Written by the annotate stage (closed parts, then assembled), read by `store` and `command`; never loads torch.
docs/label-format.md describes the format for readers without this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.files import read_json, sha256_of, write_bytes
from .records import (
    LAYOUTS,
    STATUS_OK,
    STATUS_PENDING,
    STATUS_UNREADABLE,
    LabelRows,
    RecordLayout,
    check_values,
    checked_rows,
    class_dtype,
    layout_of,
    named,
)

__all__ = [
    "FORMAT_VERSION",
    "STATUS_OK",
    "STATUS_PENDING",
    "STATUS_UNREADABLE",
    "LabelRows",
    "ShardAttributes",
    "ShardFile",
    "ShardSummary",
    "assemble_parts",
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

FORMAT_VERSION = 1

REMEDY = "Delete it and its .done marker, then run snakemake labels."
PART_REMEDY = "Delete it and run snakemake labels; its photographs are labeled again."
# what h5py raises of a damaged file; none of it reaches a user
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

_LIBVER = ("v110", "v110")  # checksums HDF5's own metadata and costs 15 instead of 48 bytes per chunk
# fletcher32, because HDF5 stores a chunk that gzip cannot shrink as it is, without zlib's checksum
_COLUMN_FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}
_KNOWN_FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
_COLUMN_CHUNK = 16384  # rows per chunk of the columns that are read whole
_MAX_REASON_BYTES = 400
_MIN_ROW_BYTES = 16  # a record and its place in the index take more; a file cannot hold more rows than this allows
_ROWS_AT_ONCE = 512  # photographs; a few MB
_JSON_FIELDS = ("preprocessing", "libraries")
_VIEWS = ("squash", "center_crop")


@dataclass(frozen=True)
class ShardAttributes:
    """What a shard says about itself; stored as HDF5 attributes of the same names.

    Attributes:
        annotator: name in the configuration.
        architecture: timm name.
        weights_sha256: of the annotator's weights.
        image_px: side of the square that the annotator saw.
        view: part of the photograph that the map covers, `squash` (all of it) or `center_crop` (largest centred square).
        preprocessing: mean, std, interpolation.
        num_classes: K.
        rows, cols: of the score map.
        k: classes stored per cell.
        precision: of the scores, `float16`.
        split: `train`, `val`...
        shard, total: this shard, from 0, of how many.
        manifest_digest: of this shard's photographs.
        labels_digest: of the label spec.
        libraries: name -> version.
        created: ISO time.
        storage: `compact` (fewest bytes) or `fast` (no compression); the same numbers.
        score_step: of which scores and tail are multiples; 0: as the annotator gave them.
    """

    annotator: str
    architecture: str
    weights_sha256: str
    image_px: int
    view: str
    preprocessing: dict[str, Any]
    num_classes: int
    rows: int
    cols: int
    k: int
    precision: str
    split: str
    shard: int
    total: int
    manifest_digest: str
    labels_digest: str
    libraries: dict[str, str]
    created: str
    storage: str = "compact"
    score_step: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_px", "num_classes", "rows", "cols", "k", "total"):
            if getattr(self, name) < 1:
                raise LabelError(f"label shard: {name} is {getattr(self, name)}, expected at least 1.")
        if not 0 <= self.shard < self.total:
            raise LabelError(
                f"label shard: number {self.shard} of {self.total}; numbers run from 0 to {self.total - 1}."
            )
        if self.k > self.num_classes:
            raise LabelError(f"label shard: k {self.k} is more than the {self.num_classes} classes.")
        if self.num_classes > 2**32:
            raise LabelError(f"label shard: num_classes {self.num_classes}, expected at most {2**32}.")
        if self.view not in _VIEWS:
            raise LabelError(f"label shard: view {self.view!r}, expected one of {', '.join(_VIEWS)}.")
        if self.storage not in LAYOUTS:
            raise LabelError(f"label shard: storage {self.storage!r}, expected one of {', '.join(LAYOUTS)}.")
        if not 0 <= self.score_step <= 4:
            raise LabelError(f"label shard: score_step {self.score_step}, expected 0 to 4.")
        if self.precision != "float16":
            raise LabelError(f"label shard: precision {self.precision!r}, expected float16.")

    @property
    def class_dtype(self) -> np.dtype[Any]:
        """Type of the class indices: uint16, or uint32 above 65,536 classes."""
        return class_dtype(self.num_classes)

    def layout(self, has_tail: bool) -> RecordLayout:
        """Layout of the shard's records."""
        class_words = self.class_dtype.itemsize // 2
        return LAYOUTS[self.storage](self.rows, self.cols, self.k, class_words, has_tail)


@dataclass(frozen=True)
class ShardSummary:
    """Counts of a shard.

    Attributes:
        images: rows; ok + unreadable + pending.
        size_bytes: of the file.
        sha256: of the file.
    """

    images: int
    ok: int
    unreadable: int
    pending: int
    size_bytes: int
    sha256: str


def shard_file_name(split: str, shard: int, total: int, suffix: str = ".h5") -> str:
    """Names a shard's file.

    Example:
        shard_file_name("train", 3, 64)  # train-00003-of-00064.h5
    """
    return f"{split}-{shard:05d}-of-{total:05d}{suffix}"


def marker_path(shard_path: Path) -> Path:
    """The marker beside a shard."""
    return shard_path.with_suffix(".done")


def read_marker(path: Path) -> dict[str, Any]:
    """Reads a marker, given its own path or its shard's.

    Raises:
        LabelError: missing (the shard was not finished), or no JSON object with the shard's sha256.
    """
    path = marker_path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise LabelError(f"marker {path}: not a regular file. Remove it, then run snakemake labels.")
        marker = read_json(path)
    except FileNotFoundError:
        raise LabelError(f"marker {path}: missing, the shard was not finished. Run snakemake labels.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LabelError(f"marker {path}: cannot be read ({error}). Delete it and run snakemake labels.") from None
    if not isinstance(marker, dict) or not isinstance(marker.get("sha256"), str):
        raise LabelError(f"marker {path}: no JSON object with a sha256. Delete it and run snakemake labels.")
    return marker


class ShardFile:
    """An open shard or part: its attributes, its columns, and its records by row.

    Nothing is read that the file only promises: sizes are held against the file's length before anything is allocated,
    and only data sets that lie in this very file, in the format's own types and filters, are opened.

    Attributes:
        path: of the file.
        attributes: what the shard says about itself; None for a part.
        layout: of its records.
        count: photographs.

    Args:
        path: of the file.
        part: whether it is a part, which has no attributes yet.

    Raises:
        LabelError: missing, no HDF5 file, truncated, incomplete, of another format version, or not of this format.
    """

    def __init__(self, path: Path, *, part: bool = False) -> None:
        self.path = path
        self._kind, self._remedy = ("part", PART_REMEDY) if part else ("shard", REMEDY)
        self._file = self._opened()
        try:
            with self.damage_named():
                self._check_version()
                self.attributes = None if part else self._read_attributes()
                self._open_records(self.attributes)
        except BaseException:
            self._file.close()
            raise

    def _opened(self) -> Any:
        try:
            if self.path.exists() and not self.path.is_file():
                raise LabelError(f"{self._kind} {self.path}: not a regular file. Remove it, then run snakemake labels.")
            # every chunk is read once; HDF5's default cache of 8 MB per data set would only cost memory
            return h5py.File(self.path, "r", rdcc_nbytes=0)
        except FileNotFoundError:
            raise LabelError(f"{self._kind} {self.path}: missing. Run snakemake labels.") from None
        except PermissionError:
            raise LabelError(
                f"{self._kind} {self.path}: no permission to read it. Ask its owner, or chmod it."
            ) from None
        except DAMAGE as error:
            raise self._damaged(error) from error

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Turns what h5py raises of damaged content into one LabelError that names the file."""
        try:
            yield
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> LabelError:
        return LabelError(
            f"{self._kind} {self.path}: damaged, truncated or not HDF5 ({_one_line(error)}). {self._remedy}"
        )

    def _refused(self, what: str) -> LabelError:
        return LabelError(f"{self._kind} {self.path}: {what}. {self._remedy}")

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- reading ---

    def chunk(self, row: int) -> bytes:
        """One row's record as it lies in the file; `layout.decode` takes it apart, without this file.

        Raises:
            OSError, ValueError: the row cannot be read; `damage_named` names the file.
        """
        mask, content = self._records.id.read_direct_chunk((row, 0))
        if mask:
            raise ValueError(f"row {row} left out a filter")
        return bytes(content)

    def column(self, name: str) -> NDArray[Any]:
        """A column: `sample_id` uint64, `status` uint8 or `reason` (bytes), each (count,).

        Raises:
            LabelError: missing, damaged, or of another type or length.
        """
        with self.damage_named():
            column = self._data_set(name)
            expected = {"sample_id": "<u8", "status": "|u1"}.get(name)
            as_expected = column.dtype == expected if expected else self._is_text(column.dtype)
            if column.shape != (self.count,) or not as_expected:
                raise self._refused(
                    f"{name} is {column.dtype} {column.shape}, expected {expected or 'text'} ({self.count},)"
                )
            values: NDArray[Any] = column[:]
        return values

    def reasons(self) -> list[str]:
        """Why rows are not ok; empty texts for the others.

        Raises:
            LabelError: as `column`, or no UTF-8.
        """
        with self.damage_named():
            return [text.decode("utf-8") for text in self.column("reason").tolist()]

    @cached_property
    def _columns(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8], list[str]]:
        return self.column("sample_id"), self.column("status"), self.reasons()

    def rows(self, positions: Sequence[int] | NDArray[np.integer[Any]]) -> LabelRows:
        """Reads and unpacks some rows, in the order asked for.

        Raises:
            LabelError: a record is damaged, or of another photograph than the column says.
        """
        return self._block(np.asarray(positions, dtype=np.int64))[1]

    def blocks(self) -> Iterator[tuple[int, list[bytes], LabelRows]]:
        """All rows in blocks: first row, chunks, unpacked rows."""
        for start in range(0, self.count, _ROWS_AT_ONCE):
            yield start, *self._block(np.arange(start, min(start + _ROWS_AT_ONCE, self.count)))

    def _block(self, positions: NDArray[np.int64]) -> tuple[list[bytes], LabelRows]:
        identifiers, status, reasons = self._columns
        records = np.empty((len(positions), self.layout.words), dtype="<u2")
        chunks = [b""] * len(positions)
        with self.damage_named():
            for place in np.argsort(positions, kind="stable").tolist():  # in the file's order
                row = int(positions[place])
                chunks[place] = self.chunk(row)
                try:
                    records[place] = self.layout.decode(chunks[place])
                except ValueError as error:
                    raise ValueError(f"row {row}: {error}") from None
            rows = self.layout.unpack(records, status[positions], [reasons[row] for row in positions.tolist()])
        wrong = np.flatnonzero(rows.sample_id != identifiers[positions])
        if len(wrong):
            raise self._refused(f"row {positions[wrong[0]]} holds another sample id than its column")
        return chunks, rows

    # --- checks at opening ---

    def _check_version(self) -> None:
        if "format_version" not in self._file.attrs:
            raise LabelError(
                f"{self._kind} {self.path}: has no format version, so it is no label {self._kind}. {self._remedy}"
            )
        version = self._integer("format_version")
        if version != FORMAT_VERSION:
            newer = "It was written by a newer tokenlabel: update this one." if version > FORMAT_VERSION else ""
            raise LabelError(
                f"{self._kind} {self.path}: format version {version}, this code reads {FORMAT_VERSION}. "
                f"{newer or self._remedy}"
            )
        if "complete" not in self._file.attrs or not self._integer("complete"):
            raise self._refused("incomplete, its writer was interrupted")

    def _attribute(self, name: str, kinds: str) -> Any:
        """A scalar attribute whose bytes lie in checksummed metadata; texts of variable length would not."""
        identifier = self._file.attrs.get_id(name)
        if identifier.shape != () or identifier.dtype.kind not in kinds:
            raise ValueError(f"attribute {name} is {identifier.dtype} {identifier.shape}")
        return self._file.attrs[name]

    def _integer(self, name: str) -> int:
        return int(self._attribute(name, "iub"))

    def _read_attributes(self) -> ShardAttributes:
        values: dict[str, Any] = {}
        for field in fields(ShardAttributes):
            if field.type == "int":
                values[field.name] = self._integer(field.name)
            elif field.type == "float":
                values[field.name] = float(self._attribute(field.name, "f"))
            else:
                text = bytes(self._attribute(field.name, "S")).decode("utf-8")
                values[field.name] = json.loads(text) if field.name in _JSON_FIELDS else text
        try:
            return ShardAttributes(**values)
        except LabelError as error:
            raise LabelError(f"{self._kind} {self.path}: {error} {self._remedy}") from None

    def _open_records(self, attributes: ShardAttributes | None) -> None:
        data_set = self._data_set("records")
        if data_set.ndim != 2 or data_set.dtype != "<u2":
            raise self._refused(f"records are {data_set.dtype} {data_set.shape}, expected uint16 (images, words)")
        self.count, words = data_set.shape
        try:
            if attributes is None:
                kind = LAYOUTS[bytes(self._attribute("storage", "S")).decode()]
                sizes = {name: self._integer(name) for name in ("rows", "cols", "k", "class_words")}
                layouts = [kind(**sizes, has_tail=has_tail) for has_tail in (False, True)]
            else:
                layouts = [attributes.layout(has_tail) for has_tail in (False, True)]
        except LabelError as error:
            raise self._refused(str(error).rstrip(".")) from None
        fitting = [layout for layout in layouts if layout.words == words]
        if not fitting:
            raise self._refused(
                f"records are {words} words long, expected {layouts[0].words}, or {layouts[1].words} with a tail"
            )
        self.layout = fitting[0]
        if self.count * _MIN_ROW_BYTES > self.path.stat().st_size:
            raise self._refused(f"promises {self.count} photographs, more than a file of its length can hold")
        if self.count:
            plan = data_set.id.get_create_plist()
            filters = tuple(plan.get_filter(position)[0] for position in range(plan.get_nfilters()))
            if data_set.chunks != (1, words) or filters != self.layout.filters:
                raise self._refused(f"records have chunks {data_set.chunks} and filters {filters}, not the format's")
        self._records = data_set

    def _data_set(self, name: str) -> Any:
        """A data set of this file itself, with filters that every HDF5 has and chunks of the format's sizes."""
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise self._refused(f"{name} is missing or a link to somewhere else")
        data_set = self._file[name]
        if not isinstance(data_set, h5py.Dataset):
            raise self._refused(f"{name} is no data set")
        plan = data_set.id.get_create_plist()
        filters = {plan.get_filter(position)[0] for position in range(plan.get_nfilters())}
        if data_set.is_virtual or plan.get_external_count() or not filters <= _KNOWN_FILTERS:
            raise self._refused(f"{name} lies in another file or needs a filter of its own")
        if data_set.chunks and data_set.chunks[0] > _COLUMN_CHUNK:
            raise self._refused(f"{name} has chunks of {data_set.chunks[0]} rows, expected at most {_COLUMN_CHUNK}")
        return data_set

    @staticmethod
    def _is_text(dtype: np.dtype[Any]) -> bool:
        return dtype.kind == "S" and dtype.itemsize <= _MAX_REASON_BYTES


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


def assemble_parts(
    parts: Sequence[Path], destination: Path, attributes: ShardAttributes, expected_ids: NDArray[np.uint64]
) -> ShardSummary:
    """Makes a shard of its parts, row by row in the order of `expected_ids`.

    Holds the shard's bytes in memory twice: 140 MB for 20,000 photographs of ImageNet.

    Args:
        parts: files of `write_part`, in any order.
        destination: the shard's path; written under a temporary name beside it, synced and renamed.
        attributes: stored in the file.
        expected_ids: uint64 (n,), the photographs the shard must hold.

    Raises:
        LabelError: the parts do not hold exactly these photographs, once each, or do not fit the attributes.
        OutputError: the folder cannot be written.
    """
    expected = np.asarray(expected_ids, dtype=np.uint64)
    positions, has_tail = _plan_assembly(parts, destination, expected)
    layout = attributes.layout(has_tail)
    reason = [""] * len(expected)
    status = np.full(len(expected), STATUS_PENDING, dtype=np.uint8)
    with _file_in_memory() as file:
        _write_attributes(file, attributes)
        write = _create_records(file, layout, len(expected))
        for path, place in zip(parts, positions, strict=True):
            with ShardFile(path, part=True) as part:
                _check_fits(part, layout)
                for start, chunks, rows in part.blocks():
                    check_values(rows, attributes.num_classes, f"part {path}", PART_REMEDY)
                    block = place[start : start + len(rows)]
                    status[block] = rows.status
                    if part.layout != layout:
                        chunks = list(layout.encode(layout.pack(rows)))
                    for row, chunk, text in zip(block.tolist(), chunks, rows.reason, strict=True):
                        write(row, chunk)
                        reason[row] = text
        _write_columns(file, expected, status, reason)
        image = _finished_image(file)
    write_bytes(destination, image)
    return _summary(status, len(image), hashlib.sha256(image).hexdigest())


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
        return _summary(shard.column("status"), path.stat().st_size, "")


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
        return _summary(shard.column("status"), path.stat().st_size, digest)


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
    return h5py.File("shard.h5", "w", driver="core", backing_store=False, libver=_LIBVER)


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
            text = json.dumps(value, sort_keys=True) if field.name in _JSON_FIELDS else value
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
        chunks = (min(len(values), _COLUMN_CHUNK),)
        file.create_dataset(name, data=values, **({"chunks": chunks, **_COLUMN_FILTERS} if len(values) else {}))


def _encoded(text: str) -> bytes:
    """UTF-8 of at most 400 bytes; HDF5 ends a text at a zero byte."""
    cut = text.replace("\x00", " ").encode("utf-8", "replace")[:_MAX_REASON_BYTES]
    return cut.decode("utf-8", "ignore").encode("utf-8")


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _summary(status: NDArray[np.uint8], size_bytes: int, digest: str) -> ShardSummary:
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


def _plan_assembly(
    parts: Sequence[Path], destination: Path, expected: NDArray[np.uint64]
) -> tuple[list[NDArray[np.int64]], bool]:
    """Place of every part's rows in the shard, and whether the parts have tails."""
    order = np.argsort(expected, kind="stable")
    in_order = expected[order]
    if np.any(in_order[1:] == in_order[:-1]):
        raise LabelError(f"shard {destination}: an id is expected twice; two paths of the manifest have one sample id.")
    filled = np.zeros(len(expected), dtype=bool)
    places: list[NDArray[np.int64]] = []
    tails: set[bool] = set()
    for path in parts:
        with ShardFile(path, part=True) as part:
            identifiers = part.column("sample_id")
            tails.add(part.layout.has_tail)
        found = np.searchsorted(in_order, identifiers)
        known = np.zeros(len(identifiers), dtype=bool)
        in_range = found < len(expected)
        known[in_range] = in_order[found[in_range]] == identifiers[in_range]
        if not known.all():
            raise LabelError(
                f"part {path}: sample {named(identifiers[~known])} does not belong to {destination.name}. {PART_REMEDY}"
            )
        place = order[found]
        twice = filled[place]
        if len(np.unique(place)) != len(place) or twice.any():
            again = identifiers[twice] if twice.any() else identifiers
            raise LabelError(f"part {path}: sample {named(again)} is there twice. {PART_REMEDY}")
        filled[place] = True
        places.append(place)
    if not filled.all():
        raise LabelError(
            f"shard {destination}: {int((~filled).sum())} of {len(expected)} samples are in no part, the first is "
            f"{named(expected[~filled])}. Run snakemake labels."
        )
    if len(tails) > 1:
        raise LabelError(
            f"shard {destination}: some parts have a tail and some have none. Delete its parts, run again."
        )
    return places, tails == {True}
