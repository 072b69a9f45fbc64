"""Which markers no longer fit a manifest: only those that say another digest for the same shard."""

from __future__ import annotations

import json
from pathlib import Path

from tokenlabel.core.staleness import stale_shards


def test_only_markers_with_another_digest_are_stale(tmp_path: Path) -> None:
    said = {
        "train-00000-of-00003": {"manifest_digest": "a"},
        "train-00001-of-00003": {"manifest_digest": "old"},
        "train-00002-of-00003": {"images": 3},  # of a version that kept no digest there
        "val-00000-of-00003": {"manifest_digest": "old"},
        "test-00000-of-00003": {"manifest_digest": "of a split that the manifest has not"},
        "train-00000-of-00004": {"manifest_digest": "of another number of shards"},
        "notes": {"manifest_digest": "old"},
    }
    for name, marker in said.items():
        (tmp_path / f"{name}.done").write_text(json.dumps(marker))
    (tmp_path / "val-00001-of-00003.done").write_text("")  # being written by another program
    (tmp_path / "val-00002-of-00003.done").write_text("[]")
    digests = {"train": ["a", "b", "c"], "val": ["d", "e", "f"]}
    assert [path.stem for path in stale_shards(tmp_path, digests)] == ["train-00001-of-00003", "val-00000-of-00003"]
    assert stale_shards(tmp_path / "nowhere", digests) == []
