"""Merges label shards of one annotator into one folder, with as many shards as wanted.

Guarantees that every photograph keeps its label bit for bit and that contradictions are refused before anything is written;
holds one piece of maps in memory, and some 60 bytes a photograph. Called by `tokenlabel labels merge`; knows no manifest, ids
and digests of one are passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..core.log import library_versions
from .shard_writer import ROWS_AT_ONCE, write_shard
from .shards import (
    STATUS_OK,
    LabelRows,
    ShardAttributes,
    ShardSummary,
    read_attributes,
    read_index,
    read_rows,
)
from .store import OWN_ATTRIBUTES

IDS_ONLY = "ids:"  # begins the digest of a shard whose photographs no manifest has told


@dataclass(frozen=True)
class MergePlan:
    """Which row of which shard each photograph's label comes from.

    Attributes:
        sources: the shards.
        attributes: of each source.
        sample_id: uint64 (n,), ascending, each id once.
        source: int32 (n,), index into `sources`.
        row: int64 (n,), in the source's file.
        replaced: unreadable or pending rows for which another source has a label.
        repeated: rows that are left out because another source says the same.
    """

    sources: tuple[Path, ...]
    attributes: tuple[ShardAttributes, ...]
    sample_id: NDArray[np.uint64]
    source: NDArray[np.int32]
    row: NDArray[np.int64]
    replaced: int
    repeated: int

    def stored_as(self, storage: str) -> MergePlan:
        """The same plan, with shards of another storage profile."""
        return replace(self, attributes=tuple(replace(said, storage=storage) for said in self.attributes))

    def ids_of_shard(self, shard: int, total: int) -> NDArray[np.uint64]:
        """Ids that belong to a merged shard, ascending."""
        mine: NDArray[np.uint64] = self.sample_id[self.sample_id % np.uint64(total) == np.uint64(shard)]
        return mine

    def digest_of_shard(self, shard: int, total: int) -> str:
        """Digest of a merged shard's photographs where no manifest tells it.

        The source's own, where one source of the same number and total holds exactly these photographs; else IDS_ONLY and
        BLAKE2b-128 of the ids (uint64, little-endian, ascending), which fits no manifest: training refuses such labels.
        """
        mine = self.sample_id % np.uint64(total) == np.uint64(shard)
        ids = self.sample_id[mine]
        for source in np.unique(self.source[mine]).tolist():
            said = self.attributes[source]
            if (said.shard, said.total) == (shard, total):
                known = read_index(self.sources[source])[0]
                if np.array_equal(np.sort(known), ids):
                    return str(said.manifest_digest)
        return f"{IDS_ONLY}{hashlib.blake2b(ids.astype('<u8').tobytes(), digest_size=16).hexdigest()}"


def plan_merge(sources: Sequence[Path]) -> MergePlan:
    """Finds each photograph's label and refuses what contradicts; reads maps only of photographs labeled twice.

    Raises:
        LabelError: attributes differ, or two shards hold different labels of one photograph.
    """
    attributes = [read_attributes(path) for path in sources]
    _check_agreement(sources, attributes)
    indices = [read_index(path) for path in sources]
    lengths = [len(ids) for ids, _ in indices]
    ids = np.concatenate([ids for ids, _ in indices])
    status = np.concatenate([status for _, status in indices])
    source = np.repeat(np.arange(len(sources), dtype=np.int32), lengths)
    row = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    # by id; of one id the label first, then unreadable, then pending; then the order of the sources
    order = np.lexsort((source, status, ids))
    ids, status, source, row = ids[order], status[order], source[order], row[order]
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    chosen = np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))  # of each row, the row that is kept
    twice = np.flatnonzero(~first & (status == STATUS_OK))  # then the kept row is ok too
    _check_repeated(sources, ids, source, row, twice, chosen)
    return MergePlan(
        sources=tuple(sources),
        attributes=tuple(attributes),
        sample_id=ids[first],
        source=source[first],
        row=row[first],
        replaced=int((~first & (status != STATUS_OK) & (status[chosen] == STATUS_OK)).sum()),
        repeated=int((~first & (status == status[chosen])).sum()),
    )


def write_merged(
    plan: MergePlan, folder: Path, shard: int, total: int, expected_ids: NDArray[np.uint64], manifest_digest: str
) -> ShardSummary:
    """Writes one merged shard and its marker; a finished one is left alone.

    Args:
        plan: of the merge.
        folder: where to; no folder of a source.
        shard, total: this shard, from 0, of how many.
        expected_ids: uint64 (n,), the shard's photographs in the order that they get.
        manifest_digest: of these photographs.

    Raises:
        LabelError: a source is damaged, or a shard of other labels is there.
        OutputError: the folder cannot be written.
    """
    attributes = replace(
        plan.attributes[0],
        shard=shard,
        total=total,
        manifest_digest=manifest_digest,
        libraries=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write_shard(folder, attributes, expected_ids, _pieces(plan, expected_ids))


def _pieces(plan: MergePlan, ids: NDArray[np.uint64]) -> Iterator[LabelRows]:
    """Rows of some ids, source by source in each source's order."""
    place = np.searchsorted(plan.sample_id, ids)
    for source in np.unique(plan.source[place]).tolist():
        rows = np.sort(plan.row[place[plan.source[place] == source]])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield read_rows(plan.sources[source], rows[start : start + ROWS_AT_ONCE])


def _check_agreement(sources: Sequence[Path], attributes: Sequence[ShardAttributes]) -> None:
    for path, said in zip(sources, attributes, strict=True):
        for field in fields(ShardAttributes):
            found, expected = getattr(said, field.name), getattr(attributes[0], field.name)
            if field.name not in {*OWN_ATTRIBUTES, "total"} and found != expected:
                raise LabelError(
                    f"shard {path}: {field.name} is {found}, but {expected} in {sources[0]}. Only labels of one annotator, "
                    "made with the same settings, can be merged."
                )
    with_rows = [path for path in sources if len(read_index(path)[0])]
    tails = [read_rows(path, np.zeros(1, dtype=np.int64)).tail is not None for path in with_rows]
    if len(set(tails)) > 1:
        odd = with_rows[tails.index(not tails[0])]
        raise LabelError(
            f"shard {odd}: has {'no tail' if tails[0] else 'a tail'}, but {with_rows[0]} has {'one' if tails[0] else 'none'}. "
            "Only labels made with the same settings can be merged."
        )


def _check_repeated(
    sources: Sequence[Path],
    ids: NDArray[np.uint64],
    source: NDArray[np.int32],
    row: NDArray[np.int64],
    twice: NDArray[np.int64],
    chosen: NDArray[np.int64],
) -> None:
    """Compares the labels of photographs that two shards hold.

    Raises:
        LabelError: they differ.
    """
    # grouped by the pair of files, so that each is opened once per piece and not once per photograph
    order = np.lexsort((row[twice], source[twice], source[chosen[twice]]))
    twice = twice[order]
    pairs = np.stack([source[chosen[twice]], source[twice]], axis=1)
    ends = [*(np.flatnonzero((pairs[1:] != pairs[:-1]).any(axis=1)) + 1).tolist(), len(twice)]
    start = 0
    for end in ends:
        for begin in range(start, end, ROWS_AT_ONCE):
            block = twice[begin : min(begin + ROWS_AT_ONCE, end)]
            kept, other = sources[source[chosen[block[0]]]], sources[source[block[0]]]
            first, second = read_rows(kept, row[chosen[block]]), read_rows(other, row[block])
            differs = np.flatnonzero(_different(first, second))
            if len(differs):
                raise LabelError(
                    f"sample {int(ids[block[differs[0]]]):#018x}: {kept} and {other} hold different labels of it. Leave out the "
                    "one that is wrong, or delete it."
                )
        start = end


def _different(first: LabelRows, second: LabelRows) -> NDArray[np.bool_]:
    """Which rows do not hold the same map, bit for bit."""
    different = np.zeros(len(first), dtype=bool)
    for name in ("scores", "classes", "tail"):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None and other is not None:
            different |= (one != other).reshape(len(first), -1).any(axis=1)
    return different
