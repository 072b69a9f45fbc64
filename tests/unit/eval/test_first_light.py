"""The summary of a first light from benchmark files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.errors import DataError
from tokenlabel.eval.first_light import as_page, measure_rules


def document(**changes: Any) -> dict[str, Any]:
    job = {
        "path": "results/labels/a-12345678/train-00000-of-00001.done", "benchmark": "benchmarks/shard.tsv", "estimate_s": 50.0,
        "gpus": 1, "estimate_bytes": 1000.0,
    }  # fmt: skip
    rule = {
        "rule": "annotate_shard", "jobs": [job | changes], "study_jobs": 10, "study_estimate_gpu_s": 36000.0,
        "study_estimate_bytes": 4e9,
    }  # fmt: skip
    return {"photographs": 10, "study_photographs": 1000, "job_start_s": 10, "gpu": "v100", "rules": [rule]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = tmp_path / "results" / "labels" / "a-12345678"
    labels.mkdir(parents=True)
    (labels / "train-00000-of-00001.done").write_bytes(b"x" * 100)
    (labels / "train-00000-of-00001.h5").write_bytes(b"x" * 1900)
    (labels / "fidelity-12345678.json").write_bytes(b"x" * 5000)  # another rule's
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "shard.tsv").write_text("s\th:m:s\n100\t0:01:40\n")
    return tmp_path


def test_seconds_and_bytes_are_scaled(folder: Path) -> None:
    (row,) = measure_rules(document(), folder)
    assert (row.seconds, row.ratio, row.study_estimated_gpu_hours, row.study_gpu_hours) == (100, 2, 10, 20)
    assert (row.size_mb, row.study_gb, row.remark) == (0.002, 8, "")
    page = as_page(document(), [row])
    assert "10 of 1,000 training photographs" in page
    assert "takes 20.0 GPU hours (planned for v100: 10.0) and leaves 8.00 GB" in page


def test_short_jobs_are_said_to_say_little(folder: Path) -> None:
    (row,) = measure_rules(document(estimate_s=19.0), folder)
    assert "mostly the start of the process" in row.remark
    (row,) = measure_rules(document(estimate_s=0.0, path=None), folder)
    assert (row.ratio, row.study_gpu_hours, row.size_mb) == (None, 10 * 100 / 3600, 0)


def test_a_rule_without_a_record(folder: Path) -> None:
    (folder / "benchmarks" / "shard.tsv").unlink()
    with pytest.raises(
        DataError, match=r"shard\.tsv: no such file; rule annotate_shard left no record of its time\. Delete"
    ):
        measure_rules(document(), folder)
