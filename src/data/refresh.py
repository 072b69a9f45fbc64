"""What has changed since a study listed its photographs, and which label shards that makes stale; called by `refresh_command`.

A photograph is known by path, class and size: bytes that changed at the same size are not seen. No shard, marker, run or
evaluation is removed; unfinished parts of shards whose photographs changed are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import OutputError
from ..core.files import Lease, read_json
from ..core.staleness import stale_shards
from .manifest import Manifest

LISTED = 10  # paths of a kind that are printed


@dataclass(frozen=True)
class Difference:
    """What differs between two manifests of one split.

    Attributes:
        added, removed: sorted rows of the new and the old manifest.
        resized, reclassed: pairs of rows, old and new.
        relocated: photographs at another place in their archive, which no label depends on.
    """

    old: Manifest
    new: Manifest
    added: NDArray[np.int64]
    removed: NDArray[np.int64]
    resized: NDArray[np.int64]
    reclassed: NDArray[np.int64]
    relocated: int

    @property
    def any(self) -> bool:
        """Whether the manifest must be written anew."""
        rows = (self.added, self.removed, self.resized, self.reclassed)
        return (
            any(map(len, rows))
            or self.relocated > 0
            or self.old.shard_digests != self.new.shard_digests
            or self.old.classes != self.new.classes
            or self.old.archives != self.new.archives
        )

    def lines(self) -> Iterator[str]:
        """What a person is told: counts, and the first paths of each kind."""
        old, new = self.old, self.new
        kinds = {
            "added": [new.path(row) for row in self.added[:LISTED]],
            "removed": [old.path(row) for row in self.removed[:LISTED]],
            "of another size": [
                f"{new.path(b)} ({old.size_bytes[a]:,} -> {new.size_bytes[b]:,} bytes)"
                for a, b in self.resized[:LISTED].tolist()
            ],
            "of another class": [
                f"{new.path(b)} ({_class_of(old, a)} -> {_class_of(new, b)})"
                for a, b in self.reclassed[:LISTED].tolist()
            ],
        }
        counts = map(len, (self.added, self.removed, self.resized, self.reclassed))
        for (kind, paths), count in zip(kinds.items(), counts, strict=True):
            if count:
                yield f"  {new.split}: {count:,} {kind}"
                yield from (f"    {path}" for path in paths)
                if count > LISTED:
                    yield f"    and {count - LISTED:,} more"
        if self.relocated:
            yield f"  {new.split}: {self.relocated:,} at another place in their archive; no label depends on that"


def _class_of(manifest: Manifest, row: int) -> str:
    index = int(manifest.class_index[row])
    return f"{index} {manifest.classes[index]}"


def compare_manifests(old: Manifest, new: Manifest) -> Difference:
    """Compares two manifests of the same split by sample id."""
    _, rows_old, rows_new = np.intersect1d(old.sample_id, new.sample_id, assume_unique=True, return_indices=True)
    pairs = np.stack([rows_old, rows_new], axis=1)
    pairs = pairs[np.argsort(rows_new)]

    def differing(*names: str) -> NDArray[np.int64]:
        differs = [getattr(old, name)[pairs[:, 0]] != getattr(new, name)[pairs[:, 1]] for name in names]
        return pairs[np.logical_or.reduce(differs)]

    return Difference(
        old=old,
        new=new,
        added=np.flatnonzero(~np.isin(new.sample_id, old.sample_id)),
        removed=np.flatnonzero(~np.isin(old.sample_id, new.sample_id)),
        resized=differing("size_bytes"),
        reclassed=differing("class_index"),
        relocated=len(differing("offset", "archive")),
    )


def moved_photographs(train: Difference, val: Difference) -> Iterator[str]:
    """Photographs that went to the other side of a validation split that config draws; none where it is a folder of its own."""
    if val.new.source != "train":
        return
    for start, end in ((train, val), (val, train)):
        crossed = np.isin(end.new.sample_id[end.added], start.old.sample_id[start.removed])
        for row in end.added[crossed].tolist():
            yield f"{end.new.path(row)} ({start.new.split} -> {end.new.split})"


def labels_of(results: Path, data_spec: dict[str, Any]) -> list[Path]:
    """Folders of labels whose spec names this data set, whatever configuration made them."""
    found = []
    for spec in sorted(results.glob("labels/*/spec.json")):
        try:
            if read_json(spec).get("dataset") == data_spec:
                found.append(spec.parent)
        except (OSError, ValueError, AttributeError):
            continue
    return found


def adapted_annotators_of(results: Path, data_spec: dict[str, Any]) -> list[Path]:
    """Markers of the annotators that were adapted to this data set."""
    markers = sorted((results / "annotators").glob("*/adapted.done"))
    return [marker for marker in markers if read_json(marker.with_name("spec.json")).get("dataset") == data_spec]


def unfinished_shards(labels: Path, differences: dict[str, Difference]) -> list[Path]:
    """Marker paths of shards whose photographs changed and that a job holds or has left parts of."""
    places = []
    for split, difference in differences.items():
        digests = zip(difference.old.shard_digests, difference.new.shard_digests, strict=True)
        total = len(difference.new.shard_digests)
        for shard, (before, after) in enumerate(digests):
            marker = labels / f"{split}-{shard:05d}-of-{total:05d}.done"
            if before != after and (marker.with_suffix(".lease").exists() or marker.with_suffix(".parts").exists()):
                places.append(marker)
    return places


def check_not_held(markers: list[Path]) -> None:
    """Refuses while a job writes a shard whose photographs changed.

    Raises:
        OutputError: the first such shard.
    """
    for marker in markers:
        lease = marker.with_suffix(".lease")
        if Lease(lease).is_held():
            raise OutputError(
                f"{lease}: a job is writing this shard, whose photographs have changed. Stop it or wait for it, then run "
                "tokenlabel refresh again; if no job runs any more, delete this file."
            )


def remove_parts(markers: list[Path]) -> None:
    """Removes what interrupted jobs have kept of photographs that are no longer the same."""
    for marker in markers:
        shutil.rmtree(marker.with_suffix(".parts"), ignore_errors=True)


def shards_to_redo(labels: Path, manifests: dict[str, Manifest]) -> list[Path]:
    """Markers in a folder that the manifests make stale."""
    return stale_shards(labels, {split: manifest.shard_digests for split, manifest in manifests.items()})
