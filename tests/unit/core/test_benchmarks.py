"""Hours of jobs that ran: legs, resumed runs, several GPUs, and files that say nothing sensible."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenlabel.core.benchmarks import gpu_hours, job_seconds, run_processes, run_seconds
from tokenlabel.core.errors import DataError
from tokenlabel.core.files import write_json, write_text

HEADER = "s\th:m:s\tmax_rss\n"


def benchmark(base: Path, run: str, name: str, seconds: object) -> None:
    write_text(base / "benchmarks/runs" / run / "seed0" / name, f"{HEADER}{seconds}\t0:00:10\t-\n")


def test_a_run_in_legs_is_the_sum_of_its_jobs_and_a_chain_of_its_runs(tmp_path: Path) -> None:
    benchmark(tmp_path, "first", "leg-01-of-02.tsv", 3600)
    benchmark(tmp_path, "first", "train.tsv", 1800)
    benchmark(tmp_path, "second", "train.tsv", 900)
    assert gpu_hours(tmp_path, ["first", "second"], 0) == pytest.approx(1.75)
    assert gpu_hours(tmp_path, ["first"], 0, gpus=4) == pytest.approx(6.0)


def test_a_resumed_run_counts_all_attempts(tmp_path: Path) -> None:
    """The benchmark file holds the last attempt, 100 of 300 s; the summary every step of both."""
    benchmark(tmp_path, "run", "train.tsv", 100)
    write_json(tmp_path / "results/runs/run/seed0/summary.json", {"seconds": 290.0, "resumed": 1})
    assert run_seconds(tmp_path, "run", 0) == 290.0
    benchmark(tmp_path, "run", "train.tsv", 310)  # unbroken: validations and the start of the process besides
    assert run_seconds(tmp_path, "run", 0) == 310.0


def test_gpus_are_the_processes_that_trained(tmp_path: Path) -> None:
    benchmark(tmp_path, "run", "train.tsv", 3600)
    write_json(tmp_path / "results/runs/run/seed0/done.json", {"processes": 8})
    assert gpu_hours(tmp_path, ["run"], 0) == pytest.approx(8.0)


def test_what_was_not_measured_has_no_hours(tmp_path: Path) -> None:
    benchmark(tmp_path, "first", "train.tsv", 3600)
    benchmark(tmp_path, "second", "leg-01-of-02.tsv", 3600)  # its last leg is still to come
    assert gpu_hours(tmp_path, ["first", "second"], 0) is None
    assert gpu_hours(tmp_path, ["first"], 1) is None
    assert gpu_hours(tmp_path, [], 0) is None
    assert job_seconds(tmp_path / "none.tsv") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "holds no line"),
        (HEADER, "holds no line"),
        ("h:m:s\tmax_rss\n0:00:10\t-\n", "gives None for its seconds"),
        (f"{HEADER}soon\t-\t-\n", "gives 'soon' for its seconds"),
        (f"{HEADER}nan\t-\t-\n", "gives 'nan' for its seconds"),
        (f"{HEADER}-5\t-\t-\n", "gives '-5' for its seconds"),
        (b"\xff\xfe\x00s", "cannot be read"),
    ],
    ids=["empty", "header only", "no column", "a word", "nan", "negative", "not text"],
)
def test_a_malformed_benchmark_is_one_line(tmp_path: Path, text: str | bytes, found: str) -> None:
    path = tmp_path / "benchmarks/runs/run/seed0/train.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        gpu_hours(tmp_path, ["run"], 0)
    assert str(caught.value).startswith(f"{path}: {found}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": null}'], ids=["half", "a list", "no seconds"])
def test_a_malformed_summary_is_one_line(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "results/runs/run/seed0/summary.json", content)
    with pytest.raises(DataError, match=r"summary\.json: .*Delete it"):
        gpu_hours(tmp_path, ["run"], 0)


def test_a_damaged_marker_is_not_to_be_deleted_for_its_hours(tmp_path: Path) -> None:
    write_text(tmp_path / "results/runs/r-1/seed0/done.json", "{")
    with pytest.raises(
        DataError, match=r"done\.json: cannot be read.*Restore it from a copy; without it the training counts as unf"
    ):
        run_processes(tmp_path, "r-1", 0)
