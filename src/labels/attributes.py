"""What a shard says about itself: its attributes, its file's name, its marker.

Called by `shard_file`, `shards` and `store`; opens no HDF5 file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import LabelError
from ..core.files import read_json
from .records import LAYOUTS, RecordLayout, class_dtype

FORMAT_VERSION = 1
JSON_FIELDS = ("preprocessing", "libraries")
VIEWS = ("squash", "centre_crop")


@dataclass(frozen=True)
class ShardAttributes:
    """What a shard says about itself; stored as HDF5 attributes of the same names.

    Attributes:
        annotator: name in the configuration.
        architecture: timm name.
        weights_sha256: of the annotator's weights.
        image_px: side of the square that the annotator saw.
        view: part of the photograph that the map covers, `squash` (all of it) or `centre_crop` (largest centred square).
        preprocessing: mean, std, interpolation; flip and scales where logits were averaged over views.
        num_classes: K.
        rows, cols: of the score map.
        k: classes stored per cell.
        precision: of the scores, `float16`.
        split: `train`, `val`...
        shard, total: this shard, from 0, of how many.
        manifest_digest: of this shard's photographs.
        labels_digest: of the label spec.
        libraries: name -> version; compute_precision -> that of the annotator's arithmetic. May differ between shards.
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
        if self.view not in VIEWS:
            raise LabelError(f"label shard: view {self.view!r}, expected one of {', '.join(VIEWS)}.")
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


def marker_of(attributes: ShardAttributes, summary: ShardSummary, seconds: float) -> dict[str, Any]:
    """What the marker of a finished shard says, ready for JSON."""
    return {
        "labels_digest": attributes.labels_digest,
        "manifest_digest": attributes.manifest_digest,
        "sha256": summary.sha256,
        "size_bytes": summary.size_bytes,
        "images": summary.images,
        "unreadable": summary.unreadable,
        "pending": summary.pending,
        "weights_sha256": attributes.weights_sha256,
        "seconds": round(seconds, 3),
    }


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
