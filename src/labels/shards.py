"""The shard format, version 1: one HDF5 file per shard that plain h5py reads, with a marker beside it.

Guarantees that a shard is whole or absent, holds exactly the photographs asked for, and that damage is an error and never
a wrong label. Written by the annotate stage (closed parts, then assembled), read by `store` and `command`; never loads torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.files import atomic_path, read_json, sha256_of

FORMAT_VERSION = 1
STATUS_OK, STATUS_UNREADABLE, STATUS_PENDING = 0, 1, 2

REMEDY = "Delete it and its .done marker, then run snakemake labels."
PART_REMEDY = "Delete it and run snakemake labels; its photographs are labeled again."

_LIBVER = ("v110", "v110")  # checksums HDF5's own metadata and costs 15 instead of 48 bytes per chunk
_FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}
_COLUMN_CHUNK = 16384  # rows per chunk of the columns that are read whole
_MAX_REASON_BYTES = 400
_VERIFIED_AT_ONCE = 512  # photographs; a few MB
_MAX_UINT16_CLASSES = 65536
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
        if self.view not in _VIEWS:
            raise LabelError(f"label shard: view {self.view!r}, expected one of {', '.join(_VIEWS)}.")
        if self.precision != "float16":
            raise LabelError(f"label shard: precision {self.precision!r}, expected float16.")

    @property
    def class_dtype(self) -> np.dtype[Any]:
        """Type of the stored class indices: uint16, or uint32 above 65,536 classes."""
        return np.dtype(np.uint16 if self.num_classes <= _MAX_UINT16_CLASSES else np.uint32)


@dataclass
class LabelRows:
    """Labels of n photographs.

    Attributes:
        sample_id: uint64 (n,).
        scores: float16 (n, rows, cols, k), raw logits, best first; zeros where the status is not ok.
        classes: uint16 or uint32 (n, rows, cols, k).
        tail: float16 (n, rows, cols), log of the summed exp of all logits that are not stored; or None.
        image_size: uint32 (n, 2), height and width in px.
        status: uint8 (n,), STATUS_OK, STATUS_UNREADABLE or STATUS_PENDING.
        reason: n texts, empty where the status is ok.
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
        marker = read_json(path)
    except FileNotFoundError:
        raise LabelError(f"marker {path}: missing, the shard was not finished. Run snakemake labels.") from None
    except (OSError, ValueError) as error:
        raise LabelError(f"marker {path}: cannot be read ({error}). Delete it and run snakemake labels.") from None
    if not isinstance(marker, dict) or not isinstance(marker.get("sha256"), str):
        raise LabelError(f"marker {path}: no JSON object with a sha256. Delete it and run snakemake labels.")
    return marker


def write_part(path: Path, rows: LabelRows) -> None:
    """Writes a small closed file of labels, whole or not at all.

    Raises:
        LabelError: shapes or values that are no labels: non-finite scores, scores beyond float16, no reason.
        OutputError: the folder cannot be written.
    """
    rows = _checked_rows(rows, str(path))
    with atomic_path(path) as temporary, _new_file(temporary) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        _write_columns(file, rows.sample_id, rows.image_size, rows.status, rows.reason)
        for name in _maps_of(rows):
            values = getattr(rows, name)
            # a part lives minutes: checksums, but no compression
            chunks = (1, *values.shape[1:])
            file.create_dataset(name, data=values, **({"chunks": chunks, "fletcher32": True} if len(rows) else {}))
        file.attrs["complete"] = True


def read_part(path: Path) -> LabelRows:
    """Reads a part.

    Raises:
        LabelError: missing, damaged, or of another format version.
    """
    with _reading(path, "part", PART_REMEDY) as file:
        _check_version(file, path, "part", PART_REMEDY)
        rows = LabelRows(
            sample_id=file["sample_id"][:],
            scores=file["scores"][:],
            classes=file["classes"][:],
            tail=file["tail"][:] if "tail" in file else None,
            image_size=file["image_size"][:],
            status=file["status"][:],
            reason=_decoded(file["reason"][:]),
        )
    return _checked_rows(rows, f"part {path}")


def assemble_parts(
    parts: Sequence[Path], destination: Path, attributes: ShardAttributes, expected_ids: NDArray[np.uint64]
) -> ShardSummary:
    """Makes a shard of its parts, row by row in the order of `expected_ids`; holds one part in memory at a time.

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
    sample_id, reason = expected, [""] * len(expected)
    status = np.full(len(expected), STATUS_PENDING, dtype=np.uint8)
    image_size = np.zeros((len(expected), 2), dtype=np.uint32)
    with atomic_path(destination) as temporary:
        with _new_file(temporary) as file:
            _write_attributes(file, attributes)
            _create_maps(file, attributes, len(expected), has_tail)
            for part, place in zip(parts, positions, strict=True):
                rows = read_part(part)
                _check_fits(rows, attributes, part)
                status[place], image_size[place] = rows.status, rows.image_size
                for index, text in zip(place.tolist(), rows.reason, strict=True):
                    reason[index] = text
                _write_maps(file, rows, place)
            _write_columns(file, sample_id, image_size, status, reason)
            file.attrs["complete"] = True
        digest, size_bytes = sha256_of(temporary), temporary.stat().st_size
    return _summary(status, size_bytes, digest)


def read_attributes(path: Path) -> ShardAttributes:
    """Reads what a shard says about itself; the format version is checked before anything else.

    Raises:
        LabelError: missing, no HDF5 file, truncated, incomplete, or of another format version.
    """
    with open_shard(path) as file:
        return attributes_of(file, path)


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """Opens a shard for reading; errors of HDF5 inside the block become a LabelError that names the file."""
    with _reading(path, "shard", REMEDY) as file:
        yield file


def attributes_of(file: Any, path: Path) -> ShardAttributes:
    """Attributes of an open shard; to be called inside `open_shard`, which names damage."""
    _check_version(file, path, "shard", REMEDY)
    values: dict[str, Any] = {}
    for field in fields(ShardAttributes):
        value = file.attrs[field.name]
        if field.name in _JSON_FIELDS:
            values[field.name] = json.loads(value)
        else:
            values[field.name] = int(value) if field.type == "int" else str(value)
    try:
        return ShardAttributes(**values)
    except LabelError as error:
        raise LabelError(f"shard {path}: {error} {REMEDY}") from None


def read_statuses(path: Path) -> ShardSummary:
    """Counts a shard's rows by status without reading its maps; the sha256 stays empty.

    Raises:
        LabelError: as `read_attributes`.
    """
    with open_shard(path) as file:
        attributes_of(file, path)
        return _summary(file["status"][:], path.stat().st_size, "")


def verify_shard(path: Path, expected_sha256: str | None = None) -> ShardSummary:
    """Reads every row of a shard and checks it.

    Args:
        path: of the shard.
        expected_sha256: of the marker; with it, every changed bit is found, also in HDF5's own structures.

    Raises:
        LabelError: another digest, a failed checksum, shapes that contradict the attributes, classes outside
            [0, num_classes) or twice in one cell, scores that are not finite or not best first, an id twice.
    """
    if not path.is_file():
        raise LabelError(f"shard {path}: missing. Run snakemake labels.")
    digest = sha256_of(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise LabelError(
            f"shard {path}: sha256 {digest[:16]}..., its marker says {expected_sha256[:16]}...: damaged or replaced. {REMEDY}"
        )
    with open_shard(path) as file:
        attributes = attributes_of(file, path)
        count = _check_structure(file, attributes, path)
        identifiers = file["sample_id"][:]
        if len(np.unique(identifiers)) != count:
            raise LabelError(f"shard {path}: holds a sample id twice. {REMEDY}")
        reasons = _decoded(file["reason"][:])
        sizes, status = file["image_size"][:], file["status"][:]
        for start in range(0, count, _VERIFIED_AT_ONCE):
            block = slice(start, min(start + _VERIFIED_AT_ONCE, count))
            rows = LabelRows(
                sample_id=identifiers[block],
                scores=file["scores"][block],
                classes=file["classes"][block],
                tail=file["tail"][block] if "tail" in file else None,
                image_size=sizes[block],
                status=status[block],
                reason=reasons[block],
            )
            _check_values(rows, attributes, f"shard {path}", REMEDY)
    return _summary(status, path.stat().st_size, digest)


# --- reading and writing HDF5 ---


class _Disk(io.FileIO):
    """A new file that remembers the first error of writing and lets HDF5 go on.

    HDF5 writes when it closes a file, fails again there, and again when Python frees its objects: a full disk would end in a
    RuntimeError and lines on standard error. The file is given up anyway, so what fails to be written is forgotten.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < len(view):  # a nearly full disk takes a part
                done += super().write(view[done:])
        except OSError as error:
            self.error = self.error or error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    """Opens an HDF5 file for writing; a disk that fails is an OSError at the end of the block."""
    with _Disk(path, "w+") as disk:
        try:
            with h5py.File(disk, "w", libver=_LIBVER) as file:
                yield file
        finally:
            if disk.error is not None:
                raise disk.error


@contextmanager
def _reading(path: Path, kind: str, remedy: str) -> Iterator[Any]:
    """Opens an HDF5 file; what h5py raises of a missing or damaged file becomes one LabelError."""
    try:
        # every chunk is read once; HDF5's default cache of 8 MB per data set would only cost memory
        with h5py.File(path, "r", rdcc_nbytes=0) as file:
            yield file
    except FileNotFoundError:
        raise LabelError(f"{kind} {path}: missing. Run snakemake labels.") from None
    except PermissionError:
        raise LabelError(f"{kind} {path}: no permission to read it. Ask its owner, or chmod it.") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise LabelError(f"{kind} {path}: damaged, truncated or not HDF5 ({error}). {remedy}") from error


def _check_version(file: Any, path: Path, kind: str, remedy: str) -> None:
    version = file.attrs.get("format_version")
    if version is None:
        raise LabelError(f"{kind} {path}: has no format version, so it is no label {kind}. {remedy}")
    if version != FORMAT_VERSION:
        raise LabelError(f"{kind} {path}: format version {version}, this code reads {FORMAT_VERSION}. {remedy}")
    if not file.attrs.get("complete", False):
        raise LabelError(f"{kind} {path}: incomplete, its writer was interrupted. {remedy}")


def _write_attributes(file: Any, attributes: ShardAttributes) -> None:
    file.attrs["format_version"] = FORMAT_VERSION
    for field in fields(attributes):
        value = getattr(attributes, field.name)
        file.attrs[field.name] = json.dumps(value, sort_keys=True) if field.name in _JSON_FIELDS else value


def _create_maps(file: Any, attributes: ShardAttributes, count: int, has_tail: bool) -> None:
    cells = (attributes.rows, attributes.cols)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "scores": ((*cells, attributes.k), np.float16),
        "classes": ((*cells, attributes.k), attributes.class_dtype),
    }
    if has_tail:
        shapes["tail"] = (cells, np.float16)
    for name, (shape, dtype) in shapes.items():
        # one chunk is one photograph; HDF5 refuses chunks of an empty data set
        options = {"chunks": (1, *shape), **_FILTERS} if count else {}
        file.create_dataset(name, shape=(count, *shape), dtype=dtype, **options)


def _write_maps(file: Any, rows: LabelRows, place: NDArray[np.int64]) -> None:
    """Writes a part's maps to its places, one slice per run of neighbours."""
    order = np.argsort(place)
    place = place[order]
    starts = np.flatnonzero(np.diff(place, prepend=-2) != 1)
    for start, stop in zip(starts, [*starts[1:], len(place)], strict=True):
        target = slice(int(place[start]), int(place[stop - 1]) + 1)
        for name in _maps_of(rows):
            file[name][target] = getattr(rows, name)[order[start:stop]]


def _write_columns(
    file: Any,
    sample_id: NDArray[np.uint64],
    image_size: NDArray[np.uint32],
    status: NDArray[np.uint8],
    reason: Sequence[str],
) -> None:
    # texts of fixed length lie inside the checksummed chunks, those of variable length would not
    texts = np.array([_encoded(text) for text in reason] or [b""], dtype=np.bytes_)[: len(reason)]
    text_type = h5py.string_dtype("utf-8", max(texts.dtype.itemsize, 1))
    columns: dict[str, NDArray[Any]] = {
        "sample_id": sample_id,
        "image_size": image_size,
        "status": status,
        "reason": texts.astype(text_type),
    }
    for name, values in columns.items():
        chunks = (min(len(values), _COLUMN_CHUNK), *values.shape[1:])
        file.create_dataset(name, data=values, **({"chunks": chunks, **_FILTERS} if len(values) else {}))


def _encoded(text: str) -> bytes:
    """UTF-8 of at most 400 bytes; HDF5 ends a text at a zero byte."""
    cut = text.replace("\x00", " ").encode("utf-8", "replace")[:_MAX_REASON_BYTES]
    return cut.decode("utf-8", "ignore").encode("utf-8")


def _decoded(texts: NDArray[np.bytes_]) -> list[str]:
    return [text.decode("utf-8") for text in texts.tolist()]


def _maps_of(rows: LabelRows) -> list[str]:
    return ["scores", "classes"] if rows.tail is None else ["scores", "classes", "tail"]


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


# --- checks ---


def _checked_rows(rows: LabelRows, where: str) -> LabelRows:
    """The rows in the types of the format.

    Raises:
        LabelError: shapes that do not fit each other, types or values that the format cannot hold.
    """
    count = len(rows.sample_id)
    if rows.scores.ndim != 4 or len(rows.scores) != count:
        raise LabelError(
            f"{where}: scores are {rows.scores.shape}, expected (images, rows, cols, k) of {count} images."
        )
    expected: dict[str, tuple[int, ...]] = {
        "classes": rows.scores.shape,
        "tail": rows.scores.shape[:3],
        "image_size": (count, 2),
        "status": (count,),
    }
    for name, shape in expected.items():
        values = getattr(rows, name)
        if values is not None and values.shape != shape:
            raise LabelError(f"{where}: {name} is {values.shape}, expected {shape}.")
    if len(rows.reason) != count:
        raise LabelError(f"{where}: {len(rows.reason)} reasons for {count} images.")
    if rows.classes.dtype not in (np.uint16, np.uint32):
        raise LabelError(f"{where}: classes are {rows.classes.dtype}, expected uint16 or uint32.")
    with np.errstate(over="ignore"):  # what overflows is infinite below, and refused with its id
        half = np.asarray(rows.scores, dtype=np.float16)
        tail = None if rows.tail is None else np.asarray(rows.tail, dtype=np.float16)
    checked = LabelRows(
        sample_id=np.asarray(rows.sample_id, dtype=np.uint64),
        scores=half,
        classes=rows.classes,
        tail=tail,
        image_size=np.asarray(rows.image_size, dtype=np.uint32),
        status=np.asarray(rows.status, dtype=np.uint8),
        reason=list(rows.reason),
    )
    _check_finite(
        checked, where, "The annotator gives logits beyond float16's 65504, or not a number; check its weights."
    )
    return checked


def _check_finite(rows: LabelRows, where: str, remedy: str) -> None:
    if np.any(rows.status > STATUS_PENDING):
        raise LabelError(f"{where}: status {int(rows.status.max())}, expected 0, 1 or 2. {remedy}")
    usable = rows.status == STATUS_OK
    bad = usable & ~np.isfinite(rows.scores).all(axis=(1, 2, 3))
    if rows.tail is not None:
        # minus infinity is right where every class is stored: nothing is left
        bad |= usable & (np.isnan(rows.tail) | np.isposinf(rows.tail)).any(axis=(1, 2))
    if bad.any():
        raise LabelError(
            f"{where}: sample {_named(rows.sample_id[bad])} has scores that are not finite in float16. {remedy}"
        )
    silent = [index for index in np.flatnonzero(rows.status == STATUS_UNREADABLE) if not rows.reason[index]]
    if silent:
        raise LabelError(f"{where}: sample {_named(rows.sample_id[silent])} is unreadable without a reason. {remedy}")


def _check_values(rows: LabelRows, attributes: ShardAttributes, where: str, remedy: str) -> None:
    """Ranges and order of the values of rows with status ok."""
    _check_finite(rows, where, remedy)
    usable = rows.status == STATUS_OK
    scores, classes, identifiers = rows.scores[usable], rows.classes[usable], rows.sample_id[usable]
    bad = (classes >= attributes.num_classes).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(
            f"{where}: sample {_named(identifiers[bad])} has class {int(classes.max())}, "
            f"expected below {attributes.num_classes}. {remedy}"
        )
    in_order = np.sort(classes, axis=-1)
    bad = (in_order[..., 1:] == in_order[..., :-1]).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(f"{where}: sample {_named(identifiers[bad])} has a class twice in one cell. {remedy}")
    bad = (scores[..., 1:] > scores[..., :-1]).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(f"{where}: sample {_named(identifiers[bad])} has scores that are not best first. {remedy}")


def _check_fits(rows: LabelRows, attributes: ShardAttributes, part: Path) -> None:
    shape = (attributes.rows, attributes.cols, attributes.k)
    if rows.scores.shape[1:] != shape:
        raise LabelError(
            f"part {part}: maps are (rows, cols, k) {rows.scores.shape[1:]}, the shard's are {shape}. {PART_REMEDY}"
        )
    _check_values(rows, attributes, f"part {part}", PART_REMEDY)


def _check_structure(file: Any, attributes: ShardAttributes, path: Path) -> int:
    """Compares shapes and types with the attributes; returns the number of rows."""
    count = len(file["sample_id"])
    cells = (count, attributes.rows, attributes.cols)
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "sample_id": ((count,), np.uint64),
        "scores": ((*cells, attributes.k), np.float16),
        "classes": ((*cells, attributes.k), attributes.class_dtype),
        "image_size": ((count, 2), np.uint32),
        "status": ((count,), np.uint8),
    }
    if "tail" in file:
        expected["tail"] = (cells, np.float16)
    for name, (shape, dtype) in expected.items():
        found = file[name]
        if found.shape != shape or found.dtype != dtype:
            raise LabelError(
                f"shard {path}: {name} is {found.dtype} {found.shape}, expected {np.dtype(dtype)} {shape}. {REMEDY}"
            )
    if file["reason"].shape != (count,):
        raise LabelError(f"shard {path}: {file['reason'].shape} reasons, expected ({count},). {REMEDY}")
    return count


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
    for part in parts:
        with _reading(part, "part", PART_REMEDY) as file:
            _check_version(file, part, "part", PART_REMEDY)
            identifiers = file["sample_id"][:]
            tails.add("tail" in file)
        found = np.searchsorted(in_order, identifiers)
        known = np.zeros(len(identifiers), dtype=bool)
        in_range = found < len(expected)
        known[in_range] = in_order[found[in_range]] == identifiers[in_range]
        if not known.all():
            raise LabelError(
                f"part {part}: sample {_named(identifiers[~known])} does not belong to {destination.name}. {PART_REMEDY}"
            )
        place = order[found]
        twice = filled[place]
        if len(np.unique(place)) != len(place) or twice.any():
            again = identifiers[twice] if twice.any() else identifiers
            raise LabelError(f"part {part}: sample {_named(again)} is there twice. {PART_REMEDY}")
        filled[place] = True
        places.append(place)
    if not filled.all():
        raise LabelError(
            f"shard {destination}: {int((~filled).sum())} of {len(expected)} samples are in no part, the first is "
            f"{_named(expected[~filled])}. Run snakemake labels."
        )
    if len(tails) > 1:
        raise LabelError(
            f"shard {destination}: some parts have a tail and some have none. Delete its parts, run again."
        )
    return places, tails == {True}


def _named(identifiers: NDArray[np.uint64]) -> str:
    """The first of some sample ids, and how many more there are."""
    more = f" (and {len(identifiers) - 1} more)" if len(identifiers) > 1 else ""
    return f"{int(identifiers[0]):#018x}{more}"
