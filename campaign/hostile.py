"""Trials with files that were made to mislead: wrong types, shapes that promise terabytes, links to elsewhere, inflating chunks.

Each is a copy of a real shard with one thing changed and a marker that fits the change, so that the digest does not give it
away. The cases go over whatever data sets and attributes the format has, so a change of the format is covered as it comes.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from tokenlabel.core.files import sha256_of, write_json
from tokenlabel.labels import LabelStore, shards
from tokenlabel.labels.shards import LabelRows, assemble_parts, marker_path, read_marker, write_part

from .damage import complaint_about, read_all
from .workplace import STEM, Workplace, fresh_folder

# reasons are read for photographs that are not ok; values are looked at one by one by verify and, classes, by the targets
READING_MAY = {"reason": ("refused", "ok"), "values": ("refused", "wrong")}
Spoil = Callable[[Path], None]
ROWS_OF_TERABYTES = 2**40
BOMB_BYTES = 2**27  # that a chunk inflates to, from 130 kB
UNKNOWN_FILTER = 32015  # zstd, a plugin that a plain h5py lacks


def read_hostile_files(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """All cases, one after the other; the seed changes nothing.

    Returns:
        count, held, and the complaint about each case that did not hold.
    """
    pristine = place.reference / f"{STEM}.h5"
    cases = hostile_files(pristine)
    folders = []
    for number, spoil in enumerate(cases.values()):
        folders.append(fresh_folder(scratch / f"{number:03d}"))
        make_hostile(pristine, folders[-1], spoil)
    found = read_all(pristine, [{"folder": str(folder)} for folder in folders], scratch)
    wrong = {}
    for name, seen in zip(cases, found, strict=True):
        if complaint := complaint_about(seen, READING_MAY.get(name.split(":")[0], ("refused",))):
            wrong[name] = complaint[:300]
    shutil.rmtree(scratch)
    return {"count": len(cases), "held": len(cases) - len(wrong), "wrong": wrong}


def make_hostile(pristine: Path, folder: Path, spoil: Spoil) -> None:
    """A copy of a shard in a folder, changed, with a marker that fits."""
    shard = folder / pristine.name
    shutil.copy(pristine, shard)
    shutil.copy(marker_path(pristine), folder)
    spoil(shard)
    if shard.is_file() and sha256_of(shard) != read_marker(pristine)["sha256"]:
        fitting = {"sha256": sha256_of(shard), "size_bytes": shard.stat().st_size}
        write_json(marker_path(shard), read_marker(pristine) | fitting)


def hostile_files(pristine: Path) -> dict[str, Spoil]:
    """Name of each case and what makes it."""
    cases: dict[str, Spoil] = {
        "shard: named pipe": _replaced(os.mkfifo),
        "shard: folder": _replaced(lambda path: path.mkdir()),
        "shard: link to /dev/zero": _replaced(lambda path: path.symlink_to("/dev/zero")),
        "shard: empty": _replaced(lambda path: path.write_bytes(b"")),
        "shard: text": _replaced(lambda path: path.write_text("photographs " * 9999)),
        "shard: signature only": _replaced(lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4096))),
        "marker: named pipe": lambda shard: _replaced(os.mkfifo)(marker_path(shard)),
        "marker: folder": lambda shard: _replaced(lambda path: path.mkdir())(marker_path(shard)),
        "marker: nested a million deep": lambda shard: _write(marker_path(shard), "[" * 10**6),
        "marker: not UTF-8": lambda shard: _replaced(lambda path: path.write_bytes(b"\xff\xfe{"))(marker_path(shard)),
        "values: classes beyond num_classes": lambda shard: _edit_attribute(shard, "num_classes", 5),
        "values: scores not a number": _with_nan,
    }
    with h5py.File(pristine) as file:
        for name, dataset in file.items():
            for kind, spoil in _DATASET_CASES.items():
                cases[f"{name}: {kind}"] = lambda shard, name=name, spoil=spoil: _edit(shard, name, spoil)
            if name == "tail":  # a shard may do without
                del cases["tail: missing"]
            if dataset.chunks is None:
                del cases[f"{name}: chunk that inflates to 128 MB"]
        for name, value in file.attrs.items():
            kind_of = _kind(value)
            for kind, other in _ATTRIBUTE_CASES.items():
                if kind != kind_of:
                    cases[f"attribute {name}: {kind}"] = lambda shard, name=name, other=other: _edit_attribute(
                        shard, name, other
                    )
            cases[f"attribute {name}: missing"] = lambda shard, name=name: _edit_attribute(shard, name, None)
            if kind_of == "number" and name not in ("complete", "image_px", "format_version", "total"):
                for number in (2**31, -1):
                    cases[f"attribute {name}: {number}"] = lambda shard, name=name, number=number: _edit_attribute(
                        shard, name, number
                    )
            if kind_of == "text" and _text(value).startswith("{"):
                for kind, text in {"broken JSON": "{", "JSON of a list": "[1]", "nested JSON": "[" * 60000}.items():
                    cases[f"attribute {name}: {kind}"] = lambda shard, name=name, text=text: _edit_attribute(
                        shard, name, text
                    )
    return cases


def _replaced(make: Callable[[Path], Any]) -> Spoil:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _with_nan(shard: Path) -> None:
    """Written by a writer that does not check."""
    store = LabelStore(shard.parent, "train")
    batch = store.get_many(store.ids)
    batch.scores[0, 0, 0, 0] = np.nan
    part = shard.with_suffix(".part")
    rows = LabelRows(**{name: getattr(batch, name) for name in LabelRows.__dataclass_fields__})
    unchecked = mock.patch.object(shards, "checked_rows", lambda rows, where: rows)
    with unchecked, mock.patch.object(shards, "check_values"):
        write_part(part, rows)
        assemble_parts([part], shard, store.attributes, store.ids)
    part.unlink()


# --- one data set ---


def _edit(shard: Path, name: str, spoil: Callable[[Any, str, Any, Path], None]) -> None:
    with h5py.File(shard, "r+", libver=("v110", "v110")) as file:
        before = file[name]
        values, chunks = before[()], before.chunks
        del file[name]
        spoil(file, name, (values, chunks), shard)


def _missing(file: Any, name: str, before: Any, shard: Path) -> None:
    return


def _group(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_group(name)


def _other_type(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_dataset(name, shape=before[0].shape, dtype=np.complex128, chunks=before[1])


def _references(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_dataset(name, shape=before[0].shape, dtype=h5py.ref_dtype)


def _texts_of_any_length(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_dataset(name, shape=before[0].shape, dtype=h5py.string_dtype())


def _terabytes(file: Any, name: str, before: Any, shard: Path) -> None:
    values, chunks = before
    chunks = chunks or (1, *values.shape[1:])
    dataset = file.create_dataset(
        name,
        shape=(ROWS_OF_TERABYTES, *values.shape[1:]),
        maxshape=(None, *values.shape[1:]),  # an index of a fixed length would be written out in full
        dtype=values.dtype,
        chunks=chunks,
        compression="gzip",
    )
    dataset[: min(chunks[0], len(values))] = values[: chunks[0]]


def _no_rows(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_dataset(name, shape=(0, *before[0].shape[1:]), dtype=before[0].dtype)


def _scalar(file: Any, name: str, before: Any, shard: Path) -> None:
    file.create_dataset(name, data=before[0].flat[0])


def _null(file: Any, name: str, before: Any, shard: Path) -> None:
    file[name] = h5py.Empty(before[0].dtype)


def _bomb(file: Any, name: str, before: Any, shard: Path) -> None:
    values = before[0]
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    chunk = (BOMB_BYTES // row_bytes, *values.shape[1:])
    dataset = file.create_dataset(
        name,
        shape=values.shape,
        maxshape=(None, *values.shape[1:]),
        dtype=values.dtype,
        chunks=chunk,
        compression="gzip",
    )
    dataset.id.write_direct_chunk((0,) * values.ndim, _zeros_deflated(chunk[0] * row_bytes))


def _zeros_deflated(size_bytes: int) -> bytes:
    deflate = zlib.compressobj(9)
    block = bytes(2**20)
    pieces = [deflate.compress(block[: min(2**20, size_bytes - done)]) for done in range(0, size_bytes, 2**20)]
    return b"".join([*pieces, deflate.flush()])


def _unknown_filter(file: Any, name: str, before: Any, shard: Path) -> None:
    values, chunks = before
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(chunks or values.shape)
    plan.set_filter(UNKNOWN_FILTER, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(values.shape)
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, plan)
    made.write_direct_chunk((0,) * values.ndim, bytes(64))


def _link_to_nothing(file: Any, name: str, before: Any, shard: Path) -> None:
    file[name] = h5py.SoftLink("/nowhere")


def _link_in_a_circle(file: Any, name: str, before: Any, shard: Path) -> None:
    file[name] = h5py.SoftLink(f"/other {name}")
    file[f"other {name}"] = h5py.SoftLink(f"/{name}")


def _link_outwards_and_back(file: Any, name: str, before: Any, shard: Path) -> None:
    other = shard.with_suffix(f".{name}.other")
    with h5py.File(other, "w") as elsewhere:
        elsewhere[name] = h5py.ExternalLink(str(shard), name)
    file[name] = h5py.ExternalLink(str(other), name)


def _link_to_other_file(file: Any, name: str, before: Any, shard: Path) -> None:
    file[name] = h5py.ExternalLink(str(_copy(name, before, shard)), name)


def _virtual(file: Any, name: str, before: Any, shard: Path) -> None:
    source = h5py.VirtualSource(str(_copy(name, before, shard)), name, shape=before[0].shape, dtype=before[0].dtype)
    layout = h5py.VirtualLayout(shape=before[0].shape, dtype=before[0].dtype)
    layout[...] = source
    file.create_virtual_dataset(name, layout)


def _stored_elsewhere(file: Any, name: str, before: Any, shard: Path) -> None:
    elsewhere = shard.with_suffix(f".{name}.raw")
    elsewhere.write_bytes(np.ascontiguousarray(before[0]).tobytes())
    file.create_dataset(
        name, shape=before[0].shape, dtype=before[0].dtype, external=[(str(elsewhere), 0, h5py.h5f.UNLIMITED)]
    )


def _copy(name: str, before: Any, shard: Path) -> Path:
    path = shard.with_suffix(f".{name}.other")
    with h5py.File(path, "w") as other:
        other[name] = before[0]
    return path


_DATASET_CASES: dict[str, Callable[[Any, str, Any, Path], None]] = {
    "missing": _missing,
    "a group": _group,
    "other type": _other_type,
    "object references": _references,
    "texts of any length": _texts_of_any_length,
    "shape of terabytes": _terabytes,
    "no rows": _no_rows,
    "a scalar": _scalar,
    "null": _null,
    "chunk that inflates to 128 MB": _bomb,
    "filter that is not installed": _unknown_filter,
    "link to nothing": _link_to_nothing,
    "links in a circle": _link_in_a_circle,
    "link to another file": _link_to_other_file,
    "link to another file and back": _link_outwards_and_back,
    "virtual, in another file": _virtual,
    "stored in another file": _stored_elsewhere,
}

# --- attributes ---

_ATTRIBUTE_CASES: dict[str, Any] = {
    "number": np.int64(3),
    "text": "many",
    "array": np.zeros(1000),
    "not UTF-8": np.bytes_(b"\xff\xfe\xfd"),
    "null": h5py.Empty("f4"),
    "not a number": np.float64("nan"),
}


def _text(value: str | bytes) -> str:
    """A text attribute, of fixed or of any length."""
    return value.decode() if isinstance(value, bytes) else value


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str | bytes) else "number"


def _edit_attribute(shard: Path, name: str, value: Any) -> None:
    with h5py.File(shard, "r+", libver=("v110", "v110")) as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
