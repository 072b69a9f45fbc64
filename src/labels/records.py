"""Labels as rows of arrays, and each photograph's label as one compressed record of 16-bit words.

Guarantees that what is packed comes back bit for bit, that a changed byte is an error and never another label, and that a
record never inflates to more than its layout says. Called by `shards` and `store`; knows no HDF5 and no torch.
The layout is public: docs/label-format.md describes it for readers without this code.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError

inflater: Any = zlib
with contextlib.suppress(ImportError):
    from zlib_ng import zlib_ng

    inflater = zlib_ng  # the same streams in half the time; files are written with zlib, the same everywhere

STATUS_OK, STATUS_UNREADABLE, STATUS_PENDING = 0, 1, 2
HEADER_WORDS = 8  # sample id (4), height (2), width (2)
MAX_MAP_ENTRIES = 2**16  # rows * cols * k: what a 16-bit index into the vocabulary can tell apart

_MAX_UINT16_CLASSES = 65536
_DEFLATE_LEVEL = 6  # bench/labels_storage.py: level 9 saves 0.2 % of the bytes and takes three times as long


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

    def take(self, index: NDArray[np.integer[Any]]) -> LabelRows:
        """Some of the rows, in the order of an index (m,)."""
        return LabelRows(
            sample_id=self.sample_id[index],
            scores=self.scores[index],
            classes=self.classes[index],
            tail=None if self.tail is None else self.tail[index],
            image_size=self.image_size[index],
            status=self.status[index],
            reason=[self.reason[place] for place in np.asarray(index).tolist()],
        )


def concatenate_rows(pieces: Sequence[LabelRows]) -> LabelRows:
    """Rows of several pieces, one after another; all with a tail or all without."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    return LabelRows(
        sample_id=joined("sample_id"),
        scores=joined("scores"),
        classes=joined("classes"),
        tail=None if pieces[0].tail is None else joined("tail"),
        image_size=joined("image_size"),
        status=joined("status"),
        reason=[reason for piece in pieces for reason in piece.reason],
    )


def class_dtype(num_classes: int) -> np.dtype[Any]:
    """Type of class indices: uint16, or uint32 above 65,536 classes."""
    return np.dtype(np.uint16 if num_classes <= _MAX_UINT16_CLASSES else np.uint32)


@dataclass(frozen=True)
class RecordLayout(ABC):
    """What lies where in a record of 16-bit words, and how it is compressed: one class per storage profile.

    Attributes:
        rows, cols: of the score map.
        k: classes per cell.
        class_words: 16-bit words per class index, 1 or 2.
        has_tail: whether the tail follows.

    Raises:
        LabelError: a size below 1, or more than 65,536 entries.
    """

    rows: int
    cols: int
    k: int
    class_words: int
    has_tail: bool

    storage: ClassVar[str]
    options: ClassVar[dict[str, Any]]  # h5py's, of the data set
    filters: ClassVar[tuple[int, ...]]  # HDF5's numbers of the same
    trailer_words: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.k) < 1 or self.entries > MAX_MAP_ENTRIES:
            raise LabelError(
                f"a map of (rows, cols, k) {(self.rows, self.cols, self.k)} has {self.entries} entries, "
                f"expected 1 to {MAX_MAP_ENTRIES}."
            )

    @cached_property
    def cells(self) -> int:
        """Cells of the map."""
        return self.rows * self.cols

    @cached_property
    def entries(self) -> int:
        """Scores of the map; also the room of its vocabulary."""
        return self.cells * self.k

    @cached_property
    def _tail(self) -> slice:
        stop = self.words - self.trailer_words
        return slice(stop - self.cells, stop)

    @cached_property
    @abstractmethod
    def words(self) -> int:
        """Length of a record in 16-bit words."""

    def pack(self, rows: LabelRows) -> NDArray[np.uint16]:
        """Lays rows out as records: uint16 (n, words), little-endian."""
        records = np.zeros((len(rows), self.words), dtype="<u2")
        records[:, :4] = rows.sample_id.astype("<u8")[:, None].view("<u2")
        records[:, 4:HEADER_WORDS] = np.ascontiguousarray(rows.image_size, dtype="<u4").view("<u2")
        self._pack_map(records[:, HEADER_WORDS:], rows)
        if rows.tail is not None:
            records[:, self._tail] = rows.tail.astype("<f2").view("<u2").reshape(len(rows), self.cells)
        return records

    def unpack(self, records: NDArray[np.uint16], status: NDArray[np.uint8], reason: list[str]) -> LabelRows:
        """Takes records apart again.

        Args:
            records: uint16 (n, words).
            status, reason: of the same rows; they lie outside of the records.

        Returns:
            rows whose arrays may share memory with `records`.

        Raises:
            ValueError: an index beyond the vocabulary.
        """
        header = records[:, :HEADER_WORDS]
        scores, classes = self._unpack_map(records[:, HEADER_WORDS:])
        tail = None
        if self.has_tail:
            tail = records[:, self._tail].view("<f2").reshape(len(records), self.rows, self.cols)
        return LabelRows(
            sample_id=header.view("<u8")[:, 0],
            scores=scores,
            classes=classes,
            tail=tail,
            image_size=header.view("<u4")[:, 2:],
            status=status,
            reason=reason,
        )

    @abstractmethod
    def encode(self, records: NDArray[np.uint16]) -> Iterator[bytes]:
        """Each record's bytes as its chunk holds them."""

    @abstractmethod
    def decode(self, chunk: bytes) -> NDArray[np.uint16]:
        """A record, uint16 (words,), of its chunk's bytes.

        Raises:
            ValueError: damaged, or not exactly that many words; never inflates further than that.
        """

    @abstractmethod
    def _pack_map(self, words: NDArray[np.uint16], rows: LabelRows) -> None: ...

    @abstractmethod
    def _unpack_map(self, words: NDArray[np.uint16]) -> tuple[NDArray[np.float16], NDArray[Any]]: ...


class FastLayout(RecordLayout):
    """Scores and class numbers as they are, cell by cell, uncompressed; 6.5 kB per ImageNet map.

    In words: header; scores float16 (rows, cols, k); class numbers (rows, cols, k), low before high where they have two
    words; tail float16 (rows, cols); CRC-32 of all words before it. HDF5's fletcher32 guards readers that do not look at it.
    """

    storage = "fast"
    options: ClassVar[dict[str, Any]] = {"fletcher32": True}
    filters = (3,)
    trailer_words = 2

    @cached_property
    def words(self) -> int:
        """Length of a record in 16-bit words."""
        return HEADER_WORDS + self.entries * (1 + self.class_words) + self.cells * self.has_tail + self.trailer_words

    def encode(self, records: NDArray[np.uint16]) -> Iterator[bytes]:
        """Each record's bytes; HDF5 adds its own checksum when they are written."""
        return (record.tobytes() for record in records)

    def decode(self, chunk: bytes) -> NDArray[np.uint16]:
        """A record, uint16 (words,), of its bytes, each of which the CRC-32 covers."""
        record = np.frombuffer(chunk, dtype="<u2", count=self.words).copy()
        if inflater.crc32(record[:-2]) != record[-2] | record[-1].astype(np.uint32) << 16:
            raise ValueError("its record is damaged: another CRC-32")
        return record

    def pack(self, rows: LabelRows) -> NDArray[np.uint16]:
        """Lays rows out as records: uint16 (n, words), little-endian."""
        records = super().pack(rows)
        for record in records:
            record[-2:] = np.array([zlib.crc32(record[:-2])], dtype="<u4").view("<u2")
        return records

    def _pack_map(self, words: NDArray[np.uint16], rows: LabelRows) -> None:
        count, entries = len(rows), self.entries
        words[:, :entries] = rows.scores.astype("<f2").view("<u2").reshape(count, entries)
        classes = np.ascontiguousarray(rows.classes, dtype="<u2" if self.class_words == 1 else "<u4").view("<u2")
        words[:, entries : entries * (1 + self.class_words)] = classes.reshape(count, entries * self.class_words)

    def _unpack_map(self, words: NDArray[np.uint16]) -> tuple[NDArray[np.float16], NDArray[Any]]:
        shape, entries = (len(words), self.rows, self.cols, self.k), self.entries
        scores = words[:, :entries].view("<f2").reshape(shape)
        classes = words[:, entries : entries * (1 + self.class_words)]
        return scores, classes.view("<u2" if self.class_words == 1 else "<u4").reshape(shape)


class CompactLayout(RecordLayout):
    """The fewest bytes of the lossless layouts measured, 3.5 kB per ImageNet map; HDF5's shuffle and gzip.

    In words: header; k planes of scores; k planes of indices into the vocabulary; the vocabulary; the tail.
    The vocabulary lists the map's distinct classes, ascending. Score planes hold the difference of their float16 bit
    patterns to the plane before, the vocabulary the difference to the class before; a running sum gives both back.
    Measured in bench/label_compression.py.
    """

    storage = "compact"
    options: ClassVar[dict[str, Any]] = {"shuffle": True, "compression": "gzip"}
    filters = (2, 1)

    @cached_property
    def words(self) -> int:
        """Length of a record in 16-bit words."""
        return HEADER_WORDS + self.entries * (2 + self.class_words) + self.cells * self.has_tail

    def encode(self, records: NDArray[np.uint16]) -> Iterator[bytes]:
        """Compresses records as HDF5's filters would: low bytes, then high bytes, as one zlib stream.

        Between sections the stream is flushed, so that each gets a code of its own: 7 % fewer bytes, the same for readers.
        """
        sections = [self.entries * count + HEADER_WORDS for count in (1, 2, 2 + self.class_words)]
        cuts = [*sections, self.words, self.words + sections[0]]
        pieces = [piece for piece in itertools.pairwise([0, *cuts, 2 * self.words]) if piece[0] < piece[1]]
        for record in records.view(np.uint8).reshape(len(records), -1, 2):
            content = record.T.tobytes()
            encoder = zlib.compressobj(_DEFLATE_LEVEL)
            stream = [
                encoder.compress(content[start:stop]) + encoder.flush(zlib.Z_PARTIAL_FLUSH) for start, stop in pieces
            ]
            yield b"".join([*stream, encoder.flush()])

    def decode(self, chunk: bytes) -> NDArray[np.uint16]:
        """A record, uint16 (words,), of its zlib stream, whose Adler-32 covers every byte."""
        decoder = inflater.decompressobj()
        try:
            content = decoder.decompress(chunk, 2 * self.words + 1)  # one more, so that it looks at the checksum
        except (zlib.error, inflater.error) as error:
            raise ValueError(f"its record is damaged: {error}") from None
        if len(content) != 2 * self.words or not decoder.eof or decoder.unused_data:
            raise ValueError(f"its record is not {2 * self.words} bytes long")
        halves = np.frombuffer(content, dtype=np.uint8)
        record: NDArray[np.uint16] = halves[self.words :].astype("<u2")
        record <<= 8
        record |= halves[: self.words]
        return record

    def _sections(self, words: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], ...]:
        """Views of the score differences, the indices, and the vocabulary's halves."""
        count, entries = len(words), self.entries
        planes = (count, self.k, self.cells)
        return (
            words[:, :entries].reshape(planes),
            words[:, entries : 2 * entries].reshape(planes),
            words[:, 2 * entries : (2 + self.class_words) * entries].reshape(count, self.class_words, entries),
        )

    def _pack_map(self, words: NDArray[np.uint16], rows: LabelRows) -> None:
        scores, indices, vocabulary = self._sections(words)
        bits = _by_rank(rows.scores.astype("<f2").view("<u2"))
        scores[:] = np.diff(bits, axis=1, prepend=np.zeros_like(bits[:, :1]))
        for place, classes in enumerate(_by_rank(rows.classes)):
            distinct, index = np.unique(classes, return_inverse=True)
            indices[place] = index.reshape(self.k, self.cells)
            gaps = np.diff(distinct, prepend=np.zeros_like(distinct[:1]))
            for half in range(self.class_words):
                vocabulary[place, half, : len(gaps)] = gaps >> (16 * half) & 0xFFFF

    def _unpack_map(self, words: NDArray[np.uint16]) -> tuple[NDArray[np.float16], NDArray[Any]]:
        scores, indices, vocabulary = self._sections(words)
        gaps: NDArray[Any] = vocabulary[:, 0]
        if self.class_words == 2:
            gaps = vocabulary[:, 0] | vocabulary[:, 1].astype(np.uint32) << 16
        places = indices.reshape(len(words), self.entries)
        classes = np.empty(places.shape, dtype=gaps.dtype)
        for number, place in enumerate(places):
            known = int(place.max()) + 1
            if known > self.entries:
                raise ValueError(f"index {known - 1} into a vocabulary of {self.entries} classes")
            classes[number] = np.add.accumulate(gaps[number, :known], dtype=gaps.dtype).take(place)
        bits = scores.copy()
        for rank in range(1, self.k):  # numpy's accumulate takes twice the time along this axis
            bits[:, rank] += bits[:, rank - 1]
        shape = (len(words), self.k, self.rows, self.cols)
        return bits.view("<f2").reshape(shape).transpose(0, 2, 3, 1), classes.reshape(shape).transpose(0, 2, 3, 1)


LAYOUTS: dict[str, type[RecordLayout]] = {layout.storage: layout for layout in (CompactLayout, FastLayout)}


def layout_of(rows: LabelRows, storage: str) -> RecordLayout:
    """The layout that some rows need."""
    _, map_rows, map_cols, k = rows.scores.shape
    return LAYOUTS[storage](map_rows, map_cols, k, rows.classes.dtype.itemsize // 2, rows.tail is not None)


def _by_rank(values: NDArray[Any]) -> NDArray[Any]:
    """(n, rows, cols, k) to (n, k, cells)."""
    count, rows, cols, k = values.shape
    return values.transpose(0, 3, 1, 2).reshape(count, k, rows * cols)


# --- checks ---


def checked_rows(rows: LabelRows, where: str) -> LabelRows:
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
    status = np.asarray(rows.status)
    usable = (status == STATUS_OK)[:, None, None, None]
    with np.errstate(over="ignore"):  # what overflows is infinite below, and refused with its id
        scores = np.where(usable, rows.scores, 0).astype(np.float16)
        tail = None if rows.tail is None else np.where(usable[..., 0], rows.tail, 0).astype(np.float16)
    checked = LabelRows(
        sample_id=np.asarray(rows.sample_id, dtype=np.uint64),
        scores=scores,
        classes=np.where(usable, rows.classes, 0).astype(rows.classes.dtype),
        tail=tail,
        image_size=np.asarray(rows.image_size, dtype=np.uint32),
        status=status.astype(np.uint8),
        reason=list(rows.reason),
    )
    check_finite(
        checked, where, "The annotator gives logits beyond float16's 65504, or not a number; check its weights."
    )
    return checked


def check_finite(rows: LabelRows, where: str, remedy: str) -> None:
    """Statuses, reasons and finite scores.

    Raises:
        LabelError: names the first sample that is wrong.
    """
    if np.any(rows.status > STATUS_PENDING):
        raise LabelError(f"{where}: status {int(rows.status.max())}, expected 0, 1 or 2. {remedy}")
    usable = rows.status == STATUS_OK
    bad = usable & ~np.isfinite(rows.scores).all(axis=(1, 2, 3))
    if rows.tail is not None:
        # minus infinity is right where every class is stored: nothing is left
        bad |= usable & (np.isnan(rows.tail) | np.isposinf(rows.tail)).any(axis=(1, 2))
    if bad.any():
        raise LabelError(
            f"{where}: sample {named(rows.sample_id[bad])} has scores that are not finite in float16. {remedy}"
        )
    silent = [index for index in np.flatnonzero(rows.status == STATUS_UNREADABLE) if not rows.reason[index]]
    if silent:
        raise LabelError(f"{where}: sample {named(rows.sample_id[silent])} is unreadable without a reason. {remedy}")


def check_values(rows: LabelRows, num_classes: int, where: str, remedy: str) -> None:
    """Ranges and order of the values of rows with status ok.

    Raises:
        LabelError: names the first sample that is wrong.
    """
    check_finite(rows, where, remedy)
    usable = rows.status == STATUS_OK
    scores, classes, identifiers = rows.scores[usable], rows.classes[usable], rows.sample_id[usable]
    bad = (classes >= num_classes).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(
            f"{where}: sample {named(identifiers[bad])} has class {int(classes.max())}, "
            f"expected below {num_classes}. {remedy}"
        )
    in_order = np.sort(classes, axis=-1)
    bad = (in_order[..., 1:] == in_order[..., :-1]).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(f"{where}: sample {named(identifiers[bad])} has a class twice in one cell. {remedy}")
    bad = (scores[..., 1:] > scores[..., :-1]).any(axis=(1, 2, 3))
    if bad.any():
        raise LabelError(f"{where}: sample {named(identifiers[bad])} has scores that are not best first. {remedy}")


def named(identifiers: NDArray[np.uint64]) -> str:
    """The first of some sample ids, and how many more there are."""
    more = f" (and {len(identifiers) - 1} more)" if len(identifiers) > 1 else ""
    return f"{int(identifiers[0]):#018x}{more}"
