"""Writes a finished shard, with its marker, from rows that come in any order: labels that are merged or imported.

Guarantees what the annotate job guarantees: whole or absent, the marker last, one writer at a time, a piece in memory at a
time. Called by `merge` and by `tokenlabel annotate import`; an interrupted shard is begun anew.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.files import Lease, write_json
from .shards import (
    LabelRows,
    ShardAttributes,
    ShardSummary,
    assemble_parts,
    marker_of,
    marker_path,
    read_marker,
    shard_file_name,
    write_part,
)

ROWS_AT_ONCE = 1024  # photographs; 7 MB of maps of 18 x 18 x 5


def write_shard(
    folder: Path, attributes: ShardAttributes, expected_ids: NDArray[np.uint64], pieces: Iterable[LabelRows]
) -> ShardSummary:
    """Writes one shard and its marker, unless they are there already.

    Args:
        folder: of the labels.
        attributes: of the shard; its file name follows from them.
        expected_ids: uint64 (n,), the photographs in the order that they get.
        pieces: their rows, each photograph once; not touched where the shard is finished.

    Raises:
        LabelError: the rows do not fit, or a shard of other labels or photographs has this name.
        OutputError: the folder cannot be written.
    """
    started = time.monotonic()
    path = folder / shard_file_name(attributes.split, attributes.shard, attributes.total)
    with Lease(path.with_suffix(".lease")):
        if finished := _finished(path, attributes):
            return finished
        parts_folder = path.with_suffix(".pieces")
        shutil.rmtree(parts_folder, ignore_errors=True)
        parts = []
        for number, rows in enumerate(pieces):
            parts.append(parts_folder / f"part-{number:05d}.h5")
            write_part(parts[-1], rows, attributes.storage)
        summary = assemble_parts(parts, path, attributes, expected_ids)
        write_json(marker_path(path), marker_of(attributes, summary, time.monotonic() - started))
        shutil.rmtree(parts_folder, ignore_errors=True)
    return summary


def _finished(path: Path, attributes: ShardAttributes) -> ShardSummary | None:
    """What the marker says of a shard that is there; None where there is none."""
    if not path.exists() or not marker_path(path).exists():
        return None
    marker = read_marker(path)
    for name in ("labels_digest", "manifest_digest"):
        if marker.get(name) != getattr(attributes, name):
            raise LabelError(
                f"shard {path}: is there already with {name} {marker.get(name)}, to be written is {getattr(attributes, name)}: "
                "other labels or other photographs. Give another --out folder, or delete the shard and its .done marker."
            )
    if marker.get("size_bytes") != path.stat().st_size:
        return None
    images, unreadable, pending = (int(marker.get(name, 0)) for name in ("images", "unreadable", "pending"))
    return ShardSummary(
        images=images,
        ok=images - unreadable - pending,
        unreadable=unreadable,
        pending=pending,
        size_bytes=int(marker["size_bytes"]),
        sha256=marker["sha256"],
    )
