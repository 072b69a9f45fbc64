"""Markers and their copies."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tokenlabel.core.files import read_json
from tokenlabel.core.markers import forget_begun, kept_copy, legs_of_finished, read_kept, write_marker


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


@pytest.mark.parametrize(
    ("output", "there", "forgotten"),
    [
        pytest.param("results/runs/main-1a2b3c4d/seed0/done.json", True, True, id="run"),
        pytest.param("results/labels/lite0-1a2b3c4d/train-00003-of-00064.done", True, True, id="shard"),
        pytest.param(
            f"results/runs/{'long_' * 45}-1a2b3c4d/seed0/done.json", True, True, id="a name of several folders"
        ),
        pytest.param("results/labels/lite0-1a2b3c4d/train-00003-of-00064.done", False, False, id="not there"),
        pytest.param("results/main.csv", True, False, id="table"),
        pytest.param("elsewhere/done.json", True, False, id="not of the results"),
    ],
)
def test_a_job_that_was_begun_and_has_its_marker_counts_as_finished(
    tmp_path: Path, output: str, there: bool, forgotten: bool
) -> None:
    records = tmp_path / ".snakemake" / "incomplete"
    name = base64.urlsafe_b64encode(output.encode()).decode()
    *folders, last = (name[start : start + 254] for start in range(0, len(name), 254))
    record = records.joinpath(*(f"@{folder}" for folder in folders), last)
    for path in (record, *([tmp_path / output] if there else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (records / "no base64.tmp").touch()
    forget_begun(records, tmp_path)
    assert record.exists() is not forgotten
    assert (records / "no base64.tmp").exists()


def test_a_study_that_was_never_begun_has_nothing_to_forget(tmp_path: Path) -> None:
    forget_begun(tmp_path / ".snakemake" / "incomplete", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["{", "[]", '{"legs": "x"}', '{"legs": 0}'])
def test_a_damaged_markers_legs_are_those_of_its_copy(tmp_path: Path, damage: str) -> None:
    marker = tmp_path / "done.json"
    write_marker(marker, {"legs": 3})
    assert legs_of_finished(marker) == 3
    marker.write_text(damage)
    assert legs_of_finished(marker) == 3
    kept_copy(marker).write_text(damage)
    assert legs_of_finished(marker) == 1
