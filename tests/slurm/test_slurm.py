"""A real slurmctld and slurmd on this machine run the study through the profile that users type, and trainings by hand.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; `.ci/run` installs them and sets
TOKENLABEL_SLURM_TESTS=1.
"""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from campaign.cluster import jobs_seen_by_slurm
from tests.slurm.conftest import run_on_cluster
from tests.unit.train.conftest import Workplace, spec, workplace  # noqa: F401 - fixtures
from tests.unit.train.test_job import lines
from tests.workflow.conftest import planned_jobs, run_snakemake, small_study  # noqa: F401 - a fixture
from tokenlabel.core.files import read_json, write_json

pytestmark = pytest.mark.slurm


def run_study(small_study: dict[str, Any], directory: Path) -> None:  # noqa: F811
    directory.mkdir()
    overlay = copy.deepcopy(small_study)
    overlay["machine"].update(annotate_mem_mb=1500, train_mem_mb=1500)
    overlay["labels"]["shards"] = 1
    finished = run_on_cluster(directory, "results/ablation_annotators.csv", overlay=overlay, timeout_s=480)
    logs = "\n".join(path.read_text(errors="replace") for path in directory.rglob("*.log"))
    assert finished.returncode == 0, finished.stderr[-4000:] + logs[-4000:]
    table = (directory / "results" / "ablation_annotators.csv").read_text()
    assert table.count("\n") == 3  # header, hard labels, one annotator
    jobs = jobs_seen_by_slurm(directory)
    assert len(jobs) == 6  # manifest, a shard, 2 runs, 2 evaluations; the table is made where Snakemake runs
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert sorted(job["Partition"] for job in jobs) == ["cpu"] + ["gpu"] * 5
    assert planned_jobs(run_snakemake(directory, "-n", "results/ablation_annotators.csv", overlay=overlay)) == {}


@dataclass(frozen=True)
class Training:
    """Files of a training by hand, and the command that runs it."""

    folder: Path
    command: list[str]


def training(spec: dict[str, Any], workplace: Workplace, folder: Path, **changes: Any) -> Training:  # noqa: F811
    folder.mkdir()
    write_json(folder / "spec.json", spec)
    write_json(folder / "machine.json", workplace.machine | {"micro_batch": 6} | changes)
    command = [
        sys.executable, "-m", "tokenlabel.train", "--spec", str(folder / "spec.json"), "--machine", str(folder / "machine.json"),
        "--manifest", str(workplace.root / "manifest"), "--labels", str(workplace.labels), "--done", str(folder / "done.json"),
        "--log", str(folder / "log"),
    ]  # fmt: skip
    return Training(folder, command)


@pytest.mark.campaign  # test_profile has the same through the profile
def test_srun_trains_in_two_processes_as_one_does(
    cluster: None,
    spec: dict[str, Any],  # noqa: F811
    workplace: Workplace,  # noqa: F811
    tmp_path: Path,
) -> None:
    alone, two = training(spec, workplace, tmp_path / "alone"), training(spec, workplace, tmp_path / "two")
    subprocess.run(alone.command, check=True, timeout=120)
    step = [
        "srun",
        "--immediate=30",
        "--partition",
        "cpu",
        "--ntasks",
        "2",
        "--mem",
        "4000",
        "--time",
        "5",
        "--kill-on-bad-exit=1",
    ]
    subprocess.run([*step, *two.command], check=True, timeout=180, cwd=tmp_path)
    assert read_json(two.folder / "done.json")["processes"] == 2
    for found, expected in zip(lines(two.folder), lines(alone.folder), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_study_runs_while_a_training_meets_slurms_time_limit(
    cluster: None,
    spec: dict[str, Any],  # noqa: F811
    workplace: Workplace,  # noqa: F811
    small_study: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Both at once, because Slurm's shortest limit is a minute: the profile's jobs, and a state that is saved before the limit."""
    spec["recipe"]["epochs"] = 10_000
    job = training(spec, workplace, tmp_path / "run")
    waiting = subprocess.Popen(
        ["sbatch", "--parsable", "--wait", "--partition", "cpu", "--time", "1", "--mem", "3000", "--output",
            str(tmp_path / "out"), "--wrap", f"exec {shlex.join(job.command)}"],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    run_study(small_study, tmp_path / "study")
    sent, _ = waiting.communicate(timeout=180)
    shown = {seen["JobId"]: seen for seen in jobs_seen_by_slurm()}[sent.split()[0]]
    said = (tmp_path / "out").read_text()
    assert (shown["JobState"], shown["ExitCode"]) == ("FAILED", "75:0"), said  # TIMEOUT would be Slurm's own end
    assert "stopped by the deadline" in said
    saved = torch.load(max(job.folder.glob("checkpoint-*.pt")), weights_only=True)["progress"]
    logged = lines(job.folder)
    assert saved["epoch"] == len(logged)  # nothing that was logged is lost
    assert saved["epoch"] > 3
