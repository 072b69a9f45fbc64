"""An open shard or part, read with suspicion: damage, other people's files and hostile ones are errors, never wrong labels.

Called by `shards` and `store`, the only places that read label files. Never writes; never loads torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from .attributes import FORMAT_VERSION, JSON_FIELDS, ShardAttributes
from .records import LAYOUTS, LabelRows

REMEDY = "Delete it and its .done marker, then run snakemake labels."
PART_REMEDY = "Delete it and run snakemake labels; its photographs are labeled again."
# what h5py raises of a damaged file; none of it reaches a user
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
COLUMN_CHUNK = 16384  # rows per chunk of the columns that are read whole
MAX_REASON_BYTES = 400

_KNOWN_FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
_MIN_ROW_BYTES = 16  # a record and its place in the index take more; a file cannot hold more rows than this allows
_ROWS_AT_ONCE = 512  # photographs; a few MB


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
            # Shards never change once they have their name, so no lock is asked for: some shared file systems have none,
            # and HDF5 would refuse to open the file there.
            return h5py.File(self.path, "r", rdcc_nbytes=0, locking=False)
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
                values[field.name] = json.loads(text) if field.name in JSON_FIELDS else text
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
        if data_set.chunks and data_set.chunks[0] > COLUMN_CHUNK:
            raise self._refused(f"{name} has chunks of {data_set.chunks[0]} rows, expected at most {COLUMN_CHUNK}")
        return data_set

    @staticmethod
    def _is_text(dtype: np.dtype[Any]) -> bool:
        return dtype.kind == "S" and dtype.itemsize <= MAX_REASON_BYTES


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
