"""Random but well-formed labels, and label folders as the annotate stage leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tokenlabel.core.files import write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels.records import layout_of
from tokenlabel.labels.shards import (
    STATUS_UNREADABLE,
    LabelRows,
    ShardAttributes,
    assemble_parts,
    marker_of,
    marker_path,
    shard_file_name,
    write_part,
)

ROWS, COLS, K = 3, 4, 2  # not square, so that an x/y swap shows


def make_attributes(**changes: Any) -> ShardAttributes:
    values: dict[str, Any] = {
        "annotator": "lite0",
        "architecture": "tf_efficientnet_lite0",
        "weights_sha256": "ab" * 32,
        "image_px": 96,
        "view": "squash",
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
        "num_classes": 10,
        "rows": ROWS,
        "cols": COLS,
        "k": K,
        "precision": "float16",
        "split": "train",
        "shard": 0,
        "total": 1,
        "manifest_digest": "m0",
        "labels_digest": "spec",
        "libraries": {"torch": "2"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return ShardAttributes(**values | changes)


def make_rows(ids: list[int], seed: int = 0, num_classes: int = 10, tail: bool = True) -> LabelRows:
    rng = np.random.default_rng(seed)
    n = len(ids)
    dtype = np.uint16 if num_classes <= 65536 else np.uint32
    scores = -np.sort(-rng.normal(3, 2, (n, ROWS, COLS, K)), axis=-1)
    first = rng.integers(0, num_classes, (n, ROWS, COLS))
    classes = np.stack([first, (first + rng.integers(1, num_classes, first.shape)) % num_classes], axis=-1)
    return LabelRows(
        sample_id=np.array(ids, dtype=np.uint64),
        scores=scores.astype(np.float16),
        classes=classes.astype(dtype),
        tail=rng.normal(0, 1, (n, ROWS, COLS)).astype(np.float16) if tail else None,
        image_size=rng.integers(20, 500, (n, 2)).astype(np.uint32),
        status=np.zeros(n, dtype=np.uint8),
        reason=[""] * n,
    )


def take(rows: LabelRows, index: list[int]) -> LabelRows:
    return rows.take(np.array(index))


def spoil(rows: LabelRows, position: int, reason: str) -> None:
    rows.status[position] = STATUS_UNREADABLE
    rows.reason[position] = reason
    for values in (rows.scores, rows.classes, rows.tail):
        if values is not None:
            values[position] = 0


def write_shard(folder: Path, rows: LabelRows, /, **changes: Any) -> Path:
    """One shard and its marker, made as the annotate stage makes it."""
    attributes = make_attributes(**changes)
    path = folder / shard_file_name(attributes.split, attributes.shard, attributes.total)
    part = folder / "part.h5"
    write_part(part, rows, attributes.storage)
    summary = assemble_parts([part], path, attributes, rows.sample_id)
    part.unlink()
    write_json(marker_path(path), marker_of(attributes, summary, 1.0))
    return path


def rewrite_rows(path: Path, rows: LabelRows) -> None:
    """Puts other labels into a shard by plain h5py, as somebody else's code might."""
    with h5py.File(path, "r+") as file:
        file["records"][:] = layout_of(rows, file.attrs["storage"].decode()).pack(rows)


def paths_of(count: int) -> list[str]:
    return [f"class{index % 3}/photo.{index}.JPEG" for index in range(count)]


@pytest.fixture
def label_folder(tmp_path: Path) -> Callable[..., tuple[Path, LabelRows]]:
    """Builds a folder of three shards of 20 photographs, one of them unreadable; gives it and all rows."""

    def build(**changes: Any) -> tuple[Path, LabelRows]:
        num_classes = changes.get("num_classes", 10)
        rows = make_rows(
            [sample_id(path) for path in paths_of(20)], num_classes=num_classes, tail=changes.pop("tail", True)
        )
        spoil(rows, 5, "cannot identify image file: naïve.JPEG")
        folder = tmp_path / "labels"
        for shard in range(3):
            mine = [position for position, identifier in enumerate(rows.sample_id) if int(identifier) % 3 == shard]
            write_shard(folder, take(rows, mine), shard=shard, total=3, manifest_digest=f"m{shard}", **changes)
        return folder, rows

    return build


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
