"""Makes the golden shards of format version 1, once: they were written by the first release and must stay as they are.

usage: python tests/golden/make_shards.py    (only when a format version is added; never to repair a failing test)

Labels are drawn from a fixed seed; expected.npz holds them as plain arrays. Four folders: both storage profiles, with and without
a tail, 16- and 32-bit class numbers, an unreadable and a pending photograph, a map that is not square.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenlabel.core.files import write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels.records import STATUS_PENDING, STATUS_UNREADABLE, LabelRows
from tokenlabel.labels.shards import ShardAttributes, assemble_parts, marker_path, shard_file_name, write_part

HERE = Path(__file__).resolve().parent / "format-1"
ROWS, COLS, K, IMAGES, SHARDS = 3, 4, 2, 7, 2
CASES = {
    "compact": ("compact", 10, False),
    "compact-tail-32bit": ("compact", 100_000, True),
    "fast": ("fast", 10, False),
    "fast-tail-32bit": ("fast", 100_000, True),
}


def drawn_rows(num_classes: int, tail: bool) -> LabelRows:
    rng = np.random.default_rng(2104_10858)
    dtype = np.uint16 if num_classes <= 65536 else np.uint32
    first = rng.integers(0, num_classes, (IMAGES, ROWS, COLS))
    second = (first + rng.integers(1, num_classes, first.shape)) % num_classes
    scores = -np.sort(-rng.normal(2, 4, (IMAGES, ROWS, COLS, K)), axis=-1)
    rows = LabelRows(
        sample_id=np.array([sample_id(f"class{index % 2}/photo.{index}.JPEG") for index in range(IMAGES)], np.uint64),
        scores=scores.astype(np.float16),
        classes=np.stack([first, second], -1).astype(dtype),
        tail=rng.normal(0, 2, (IMAGES, ROWS, COLS)).astype(np.float16) if tail else None,
        image_size=rng.integers(30, 5000, (IMAGES, 2)).astype(np.uint32),
        status=np.zeros(IMAGES, np.uint8),
        reason=[""] * IMAGES,
    )
    for place, status, reason in (
        (2, STATUS_UNREADABLE, "cannot identify image file: naïve.JPEG"),
        (4, STATUS_PENDING, ""),
    ):
        rows.status[place], rows.reason[place] = status, reason
        for values in (rows.scores, rows.classes, rows.tail):
            if values is not None:
                values[place] = 0
    return rows


def main() -> None:
    for name, (storage, num_classes, tail) in CASES.items():
        rows, folder = drawn_rows(num_classes, tail), HERE / name
        for shard in range(SHARDS):
            mine = rows.take(np.flatnonzero(rows.sample_id % np.uint64(SHARDS) == np.uint64(shard)))
            attributes = ShardAttributes(
                annotator="golden", architecture="none", weights_sha256="ab" * 32, image_px=96, view="squash",
                preprocessing={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
                num_classes=num_classes, rows=ROWS, cols=COLS, k=K, precision="float16", split="train", shard=shard,
                total=SHARDS, manifest_digest=f"m{shard}", labels_digest="00000000", libraries={},
                created="2026-11-25T00:00:00+00:00", storage=storage,
            )  # fmt: skip
            path, part = folder / shard_file_name("train", shard, SHARDS), folder / "part.h5"
            write_part(part, mine, storage)
            summary = assemble_parts([part], path, attributes, mine.sample_id)
            part.unlink()
            write_json(
                marker_path(path),
                {
                    "labels_digest": attributes.labels_digest, "manifest_digest": attributes.manifest_digest,
                    "sha256": summary.sha256, "size_bytes": summary.size_bytes, "images": summary.images,
                    "unreadable": summary.unreadable, "weights_sha256": attributes.weights_sha256, "seconds": 0.0,
                },
            )  # fmt: skip
        values = {name: value for name, value in vars(rows).items() if value is not None}
        np.savez(folder / "expected.npz", **values | {"reason": np.array([text.encode() for text in rows.reason])})


if __name__ == "__main__":
    main()
