"""The profile on a real Slurm: processes of one training started by srun, a training beyond the time limit, grouped shards."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from campaign.cluster import jobs_seen_by_slurm, wait_until
from tests.slurm.conftest import run_on_cluster
from tests.unit.train.test_job import lines
from tests.workflow.conftest import planned_jobs, run_snakemake, small_study  # noqa: F401 - a fixture
from tokenlabel.core.files import read_json
from tokenlabel.engine.reporting import MetricsFile

pytestmark = pytest.mark.slurm

HARD = "lvvit_small-hard-*"


@pytest.fixture
def overlay(small_study: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """The small study on fake GPUs: `auto` asks Slurm for them and finds none."""
    overlay = copy.deepcopy(small_study)
    overlay["machine"].update(
        device="auto", precision="float32", annotate_mem_mb=1500, train_mem_mb=1500, micro_batch=12
    )
    return overlay


def hard_run(directory: Path, overlay: dict[str, Any]) -> str:
    """Marker of the run with hard labels, which needs no annotator."""
    planned = run_snakemake(directory, "-n", "results/ablation_annotators.csv", overlay=overlay)
    (marker,) = {word for word in planned.stdout.split() if "-hard-" in word and word.endswith("done.json")}
    return marker


def test_a_training_in_two_processes_under_the_profile_is_the_one_in_one(
    cluster: None, overlay: dict[str, Any], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    marker = hard_run(folders[0], overlay)
    alone = run_snakemake(folders[0], marker, "--cores", "1", overlay=overlay)
    assert alone.returncode == 0, alone.stderr[-3000:]
    overlay["machine"]["processes"] = 2
    shared = run_on_cluster(folders[1], marker, overlay=overlay)
    assert shared.returncode == 0, shared.stderr[-5000:]
    one, two = (folder / marker for folder in folders)
    assert (read_json(one)["processes"], read_json(two)["processes"]) == (1, 2)
    for found, expected in zip(lines(two.parent), lines(one.parent), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    logs = {path.name: path.read_text() for path in (folders[1] / "logs" / "runs").rglob("*.log")}
    assert logs.keys() == {"train.log", "train.rank1.log"}
    assert all("before the first step" in text or "done in" in text for text in logs.values())
    job = jobs_seen_by_slurm(folders[1])[-1]
    assert (job["JobState"], job["NumNodes"], job["NumTasks"], job["CPUs/Task"]) == ("COMPLETED", "1", "2", "1")
    assert job["TresPerJob"] == "gres:gpu:2"


GOES_BACK = """
import os, time
from tokenlabel.engine.stopping import put_back_into_queue
if "SLURM_RESTART_COUNT" in os.environ:
    open("came-again", "w").close()
else:
    assert put_back_into_queue()
    time.sleep(60)
"""


def test_a_job_that_goes_back_into_the_queue_keeps_its_limits(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(GOES_BACK)
    send = ["sbatch", "--parsable", "--requeue", "--partition", "gpu", "--gpus", "1", "--mem", "700", "--time", "3"]
    sent = subprocess.run(
        [*send, "--output", str(tmp_path / "out"), "--wrap", f"exec {sys.executable} job.py"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with impatience(tmp_path):
        wait_until((tmp_path / "came-again").exists, "the job did not come again", timeout_s=60)
        job = wait_until(
            lambda: [job for job in jobs_seen_by_slurm(tmp_path) if job["JobState"] == "COMPLETED"], "end"
        )[0]
    assert (job["JobId"], job["Restarts"], job["TimeLimit"]) == (sent.stdout.strip(), "1", "00:03:00")
    assert job["MinMemoryNode"] == "700M"
    assert job["TresPerJob"] == "gres:gpu:1"


class impatience:  # noqa: N801 - reads as words of a with statement
    """Slurm lets a job that goes back into the queue wait two minutes; within the block it starts at once.

    Args:
        folder: of the workflow or job.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._over = folder, threading.Event()
        self._thread = threading.Thread(target=self._start_jobs, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _start_jobs(self) -> None:
        while not self._over.wait(2):
            for job in jobs_seen_by_slurm(self._folder):
                if (job["JobState"], job["Reason"]) == ("PENDING", "BeginTime"):
                    start = ["scontrol", "update", f"JobId={job['JobId']}", "StartTime=now"]
                    subprocess.run(start, capture_output=True, timeout=60, check=False)


def run_unbroken(folder: Path, overlay: dict[str, Any], epochs: int) -> str:
    """Runs the training where nothing limits it; returns its marker."""
    folder.mkdir()
    overlay["recipes"]["demo"]["epochs"] = overlay["caps"]["epochs"] = epochs
    marker = hard_run(folder, overlay)
    finished = run_snakemake(folder, marker, "--cores", "1", overlay=overlay, timeout_s=1500)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return marker


@pytest.mark.campaign
def test_a_training_beyond_the_time_limit_goes_on_in_further_jobs(
    cluster: None, overlay: dict[str, Any], tmp_path: Path
) -> None:
    """One minute is what the partition allows; the run needs three jobs of it, and its two legs were estimated too short."""
    overlay["machine"].update(validate_every_epochs=0, tensorboard=False, micro_batch=24)
    measured, whole, limited = (tmp_path / name for name in ("measured", "whole", "limited"))
    marker = run_unbroken(measured, overlay, epochs=60)
    # by the fastest epoch, for the machine may be busy now and idle then; half of a job's minute is starting and ending
    fastest_s = min(line["seconds"] for line in MetricsFile((measured / marker).with_name("metrics.jsonl")).lines())
    epochs = round(150 / fastest_s)
    marker = run_unbroken(whole, overlay, epochs)
    limited.mkdir()
    overlay["machine"].update(max_job_hours=1 / 60, leg_epochs=epochs - 1)
    with impatience(limited):
        finished = run_on_cluster(limited, marker, overlay=overlay, python=sys.executable, timeout_s=1500)
    assert finished.returncode == 0, finished.stderr[-5000:]
    found, expected = (lines((folder / marker).parent) for folder in (limited, whole))
    assert found == expected
    assert read_json(limited / marker)["weights_sha256"] == read_json(whole / marker)["weights_sha256"]
    leg = read_json(next((limited / marker).parent.glob("leg-01-of-02.done")))
    assert "stopped by the deadline" in leg["stopped"]
    _manifest, *legs = jobs_seen_by_slurm(limited)
    assert len(legs) == 2  # none was submitted again: attempt 1, no retry
    assert {job["JobState"] for job in legs} == {"COMPLETED"}
    assert {(job["TimeLimit"], job["MinMemoryNode"]) for job in legs} == {("00:01:00", "1500M")}
    assert int(legs[0]["Restarts"]) == 0
    assert int(legs[1]["Restarts"]) >= 1
    assert planned_jobs(run_snakemake(limited, "-n", marker, overlay=overlay)) == {}


GROUPED = [
    "--groups", "annotate_shard=shards", "--group-components", "shards=2", "--resources", "in_turn=1",
    "--set-resource-scopes", "in_turn=local",
]  # fmt: skip


@pytest.mark.campaign
def test_a_group_of_shards_of_which_one_fails_repeats_no_finished_one(
    cluster: None, overlay: dict[str, Any], tmp_path: Path
) -> None:
    overlay["labels"]["shards"] = 4
    (folder,) = {
        Path(word).parent
        for word in run_snakemake(tmp_path, "-n", "labels", overlay=overlay).stdout.split()
        if word.startswith("results/labels/") and word.endswith("00000-of-00004.done")
    }
    obstacles = [tmp_path / folder / f"train-{shard:05d}-of-00004.h5" for shard in range(4)]
    for shard in (1, 2):  # a folder where the file shall lie, so that one member or two cannot finish
        (obstacles[shard] / "in-the-way").mkdir(parents=True)
    seen: dict[Path, int] = {}

    def clear_the_way() -> None:
        wait_until(lambda: [job for job in jobs_seen_by_slurm(tmp_path) if job["JobState"] == "FAILED"], "fail", 300)
        seen.update({path: path.stat().st_mtime_ns for path in obstacles if path.is_file()})
        for shard in (1, 2):
            shutil.rmtree(obstacles[shard], ignore_errors=True)

    helper = threading.Thread(target=clear_the_way)
    helper.start()
    finished = run_on_cluster(tmp_path, "labels", *GROUPED, overlay=overlay)
    helper.join()
    assert finished.returncode == 0, finished.stderr[-5000:]
    _manifest, *groups = jobs_seen_by_slurm(tmp_path)
    assert [job["JobState"] for job in groups].count("COMPLETED") == 2
    assert "FAILED" in {job["JobState"] for job in groups}
    assert seen  # a member had finished before another one failed
    assert {path: path.stat().st_mtime_ns for path in seen} == seen
    assert all(path.is_file() for path in obstacles)
    first = groups[0]
    assert (first["TresPerJob"], first["MinMemoryNode"], first["TimeLimit"]) == ("gres:gpu:1", "1500M", "00:40:00")
    assert planned_jobs(run_snakemake(tmp_path, "-n", "labels", overlay=overlay)) == {}
