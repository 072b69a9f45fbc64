"""A real slurmctld and slurmd on this machine run the study through the profile that users type.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; `.ci/run` installs them and sets
TOKENLABEL_SLURM_TESTS=1, which turns a skip into a failure.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import planned_jobs, run_snakemake, small_study  # noqa: F401 - a fixture

CLUSTER = Path(__file__).parent / "cluster"
# a test cluster has no accounting, and polls fast; partitions, GPUs and memory are the profile's own
TEST_CLUSTER = [
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20",
    "--jobs", "4",
]  # fmt: skip

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    needed = os.environ.get("TOKENLABEL_SLURM_TESTS") == "1"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=PATHS) is None]
    if (missing or os.geteuid() != 0) and not needed:
        pytest.skip(
            f"no Slurm here ({', '.join(missing) or 'not root'}); apt-get install slurmctld slurmd slurm-client munge"
        )
    started = subprocess.run([CLUSTER / "setup.sh"], capture_output=True, text=True, timeout=180, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    yield
    subprocess.run([CLUSTER / "stop.sh", "--wipe"], capture_output=True, timeout=120, check=False)


PATHS = os.environ["PATH"] + ":/usr/sbin:/sbin"


def jobs_seen_by_slurm() -> list[dict[str, str]]:
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, timeout=60, check=True
    )
    return [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in shown.stdout.splitlines() if "JobId=" in line]


def test_the_profile_runs_a_study_through_real_slurm(
    cluster: None,
    small_study: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    overlay = copy.deepcopy(small_study)
    overlay["machine"].update(annotate_mem_mb=1500, train_mem_mb=1500)
    finished = run_snakemake(
        tmp_path, "--profile", "slurm", "results/ablation_annotators.csv", *TEST_CLUSTER, overlay=overlay, timeout_s=480
    )
    logs = "\n".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.log"))
    assert finished.returncode == 0, finished.stderr[-4000:] + logs[-4000:]
    table = (tmp_path / "results" / "ablation_annotators.csv").read_text()
    assert table.count("\n") == 3  # header, hard labels, one annotator
    jobs = jobs_seen_by_slurm()
    assert len(jobs) == 7  # manifest, 2 shards, 2 runs, 2 evaluations; the table is made where Snakemake runs
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert sorted(job["Partition"] for job in jobs) == ["cpu"] + ["gpu"] * 6
    assert planned_jobs(run_snakemake(tmp_path, "-n", "results/ablation_annotators.csv", overlay=overlay)) == {}
