"""Markers and their copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenlabel.core.files import read_json
from tokenlabel.core.markers import kept_copy, read_kept, write_marker


def test_a_marker_has_a_copy_that_outlives_it(tmp_path: Path) -> None:
    marker = tmp_path / "run" / "done.json"
    write_marker(marker, {"digest": "1a2b3c4d"})
    assert read_json(marker) == {"digest": "1a2b3c4d"}
    marker.unlink()
    assert read_kept(marker) == {"digest": "1a2b3c4d"}


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff"], ids=["none", "empty", "torn", "list", "bytes"])
def test_a_copy_that_says_nothing_counts_for_nothing(tmp_path: Path, content: bytes | None) -> None:
    marker = tmp_path / "done.json"
    if content is not None:
        kept_copy(marker).write_bytes(content)
    assert read_kept(marker) is None
