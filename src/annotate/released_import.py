"""Labels of the released layout into shards: every photograph of the manifest gets a row, in shards that fit it.

Guarantees that no file's code runs, that each file is checked before it is believed, that memory holds a piece at a time, and
that an import which was interrupted goes on at the shard it was in. Called by `tokenlabel annotate import`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.identity import digest_of
from ..core.log import library_versions
from ..core.seeds import sample_id
from ..data.images import UnreadableImageError, upright_size
from ..data.manifest import Manifest
from ..data.readers import ByteSource
from ..labels.released import ReleasedTree, parse_released, released_name
from ..labels.shard_writer import ROWS_AT_ONCE, write_shard
from ..labels.shards import STATUS_OK, STATUS_PENDING, STATUS_UNREADABLE, LabelRows, ShardAttributes, ShardSummary

SAMPLED = 64  # files whose content tells an archive from another one
IMPORT_VERSION = 1  # raise it when a change of code changes what is imported
UNKNOWN = "unknown"  # attributes that the released layout does not tell


@dataclass(frozen=True)
class ReleasedLabels:
    """Released labels of a data set, as found.

    Attributes:
        tree: where the files are.
        manifest: of the photographs.
        present: bool (photographs,), which have a file of their own.
        shape: axis 2, axis 3 and k of every map.
        shared: photographs whose file name another photograph has too; whose label that file is, nobody can tell.
    """

    tree: ReleasedTree
    manifest: Manifest
    present: NDArray[np.bool_]
    shape: tuple[int, int, int]
    shared: int

    @cached_property
    def fingerprint(self) -> str:
        """Tells archives apart: BLAKE2b of which photographs have a file, and of up to 64 files of the first shard.

        That one is imported first, so a file elsewhere that was copied again lets an import go on.
        """
        digest = hashlib.blake2b(self.present.tobytes(), digest_size=16)
        rows = self.manifest.rows_of_shard(0)
        rows = rows[self.present[rows]] if self.present[rows].any() else np.flatnonzero(self.present)
        for row in rows[:SAMPLED].tolist():
            digest.update(self.tree.read(released_name(self.manifest.path(row))))
        return digest.hexdigest()

    def read(self, row: int) -> tuple[NDArray[np.float16], NDArray[np.uint16]]:
        """Scores and classes of one photograph, (axis 2, axis 3, k), best first.

        Raises:
            LabelError: the file is no label.
        """
        name = released_name(self.manifest.path(row))
        return parse_released(self.tree.read(name), self.tree.where(name), len(self.manifest.classes), self.shape)


def find_released(tree: ReleasedTree, manifest: Manifest) -> ReleasedLabels:
    """Looks which photographs have a file, and how large the maps are.

    Raises:
        LabelError: none has, or the first file is no label.
    """
    keys = np.empty(len(manifest), dtype=np.uint64)
    there = np.empty(len(manifest), dtype=bool)
    for row in range(len(manifest)):
        name = released_name(manifest.path(row))
        keys[row], there[row] = sample_id(name), name in tree
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    present = there & ~shared
    if not present.any():
        raise LabelError(
            f"released labels {tree.path}: no file for any of the {len(manifest)} photographs of split {manifest.split}; the "
            f"first would be {released_name(manifest.path(0))}. Correct the path, or give the manifest of the right data set."
        )
    name = released_name(manifest.path(int(np.flatnonzero(present)[0])))
    scores, _ = parse_released(tree.read(name), tree.where(name), len(manifest.classes))
    return ReleasedLabels(tree, manifest, present, scores.shape, int((shared & there).sum()))


def check_missing(labels: ReleasedLabels, on_missing: str) -> None:
    """Refuses photographs without a file where `on_missing` is `fail`.

    Raises:
        LabelError: some have none.
    """
    absent = np.flatnonzero(~labels.present)
    if len(absent) and on_missing == "fail":
        first = labels.manifest.path(int(absent[0]))
        shared = f", {labels.shared} of them because two photographs have one released name" if labels.shared else ""
        raise LabelError(
            f"released labels {labels.tree.path}: {len(absent)} of {len(labels.present)} photographs have no file of their own"
            f"{shared}, the first is {first}. Add them, or give --on-missing record: training then skips these photographs."
        )


def import_shard(
    labels: ReleasedLabels, shard: int, folder: Path, about: dict[str, Any], source: ByteSource | None
) -> ShardSummary:
    """Writes one shard and its marker; a finished one of the same import is left alone.

    Args:
        labels: where they come from.
        shard: which, from 0.
        folder: of the shards.
        about: annotator, axes (`right` or `transposed`), view, image_px, decided (how axes and view are known).
        source: of the photographs, to record their sizes; None: sizes stay 0.

    Raises:
        LabelError: a file is no label, or another import's shard is there.
        DataError: a photograph does not fit the manifest.
        OutputError: the folder cannot be written.
    """
    manifest = labels.manifest
    rows = manifest.rows_of_shard(shard)
    transposed = about["axes"] == "transposed"
    first, second, k = labels.shape
    grid = (second, first) if transposed else (first, second)
    attributes = ShardAttributes(
        annotator=about["annotator"],
        architecture=UNKNOWN,
        weights_sha256=UNKNOWN,
        image_px=about["image_px"],
        view=about["view"],
        preprocessing={"imported_from": "released layout", "axes": about["axes"], "axes_and_view": about["decided"]},
        num_classes=len(manifest.classes),
        rows=grid[0],
        cols=grid[1],
        k=k,
        precision="float16",
        split=manifest.split,
        shard=shard,
        total=len(manifest.shard_digests),
        manifest_digest=manifest.shard_digests[shard],
        labels_digest=labels_digest(about, labels),
        libraries=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write_shard(
        folder, attributes, manifest.sample_id[rows], _pieces(labels, rows, attributes, transposed, source)
    )


def labels_digest(about: dict[str, Any], labels: ReleasedLabels) -> str:
    """Digest of what decides an import's numbers."""
    decisive = {name: about[name] for name in ("annotator", "axes", "view", "image_px")}
    return digest_of(
        {
            "stage": "import", "version": IMPORT_VERSION, **decisive, "shape": list(labels.shape),
            "num_classes": len(labels.manifest.classes), "content": labels.fingerprint,
        }
    )  # fmt: skip


def _pieces(
    labels: ReleasedLabels,
    rows: NDArray[np.int64],
    attributes: ShardAttributes,
    transposed: bool,
    source: ByteSource | None,
) -> Iterator[LabelRows]:
    """Rows of the shard, a piece at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        shape = (len(some), attributes.rows, attributes.cols, attributes.k)
        piece = LabelRows(
            sample_id=labels.manifest.sample_id[some],
            scores=np.zeros(shape, dtype=np.float16),
            classes=np.zeros(shape, dtype=attributes.class_dtype),
            tail=None,
            image_size=np.zeros((len(some), 2), dtype=np.uint32),
            status=np.where(labels.present[some], STATUS_OK, STATUS_PENDING).astype(np.uint8),
            reason=["" if labels.present[row] else "no file of its own in the released labels" for row in some],
        )
        for place, row in enumerate(some.tolist()):
            if not labels.present[row]:
                continue
            for target, values in zip((piece.scores, piece.classes), labels.read(row), strict=True):
                target[place] = values.transpose(1, 0, 2) if transposed else values
            if source is not None:
                try:
                    piece.image_size[place] = upright_size(labels.manifest.read(source, row))
                except UnreadableImageError as error:
                    piece.status[place], piece.reason[place] = STATUS_UNREADABLE, str(error)
        yield piece
