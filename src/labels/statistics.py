"""What a sample of a shard's maps looks like: logits, distinct classes, mass that is stored.

Quick by design: at most a few hundred maps are read, however large the shard. Called by `tokenlabel labels inspect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .shards import STATUS_OK, read_index, read_rows


@dataclass(frozen=True)
class MapStatistics:
    """Numbers of some maps; joined by `joined`.

    Attributes:
        best: float16 (cells,), the best logit of every cell.
        smallest: of all stored logits; infinite without maps.
        distinct: int64 (images,), distinct classes of each map.
        mass: float32 (images,), share of the probability that is stored, mean over cells; empty without a tail.
        classes: int64 (num_classes,), cells in which each class is best.
    """

    best: NDArray[np.float16]
    smallest: float
    distinct: NDArray[np.int64]
    mass: NDArray[np.float32]
    classes: NDArray[np.int64]

    @property
    def images(self) -> int:
        """Maps that were read."""
        return len(self.distinct)


def sample_statistics(path: Path, num_classes: int, sample: int) -> MapStatistics:
    """Reads evenly spaced readable photographs of a shard.

    Args:
        path: of the shard.
        num_classes: of its annotator.
        sample: how many at most.

    Raises:
        LabelError: a row is damaged.
    """
    usable = np.flatnonzero(read_index(path)[1] == STATUS_OK)
    if len(usable) > sample:
        usable = usable[np.linspace(0, len(usable) - 1, sample).astype(np.int64)]
    if not len(usable):
        empty = np.zeros(0)
        return MapStatistics(
            empty.astype(np.float16), np.inf, empty.astype(np.int64), empty.astype(np.float32),
            np.zeros(num_classes, dtype=np.int64),
        )  # fmt: skip
    rows = read_rows(path, usable)
    mass = np.zeros(0, dtype=np.float32)
    if rows.tail is not None:
        stored = np.logaddexp.reduce(rows.scores.astype(np.float32), axis=-1)
        mass = (1 / (1 + np.exp(rows.tail.astype(np.float32) - stored))).mean(axis=(1, 2))
    return MapStatistics(
        best=rows.scores[..., 0].ravel(),
        smallest=float(rows.scores.min()),
        distinct=np.array([len(np.unique(classes)) for classes in rows.classes], dtype=np.int64),
        mass=mass,
        classes=np.bincount(rows.classes[..., 0].ravel(), minlength=num_classes),
    )


def joined(pieces: Sequence[MapStatistics]) -> MapStatistics:
    """The statistics of all pieces together."""
    return MapStatistics(
        best=np.concatenate([piece.best for piece in pieces]),
        smallest=min(piece.smallest for piece in pieces),
        distinct=np.concatenate([piece.distinct for piece in pieces]),
        mass=np.concatenate([piece.mass for piece in pieces]),
        classes=np.sum([piece.classes for piece in pieces], axis=0),
    )
