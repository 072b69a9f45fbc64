"""`tokenlabel doctor`, the page docs/cluster.md and Snakemake as a Slurm job, on a real slurmctld and slurmd."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.warm import warm_python
from tests.workflow.conftest import REPOSITORY, small_study  # noqa: F401 - a fixture
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study

pytestmark = pytest.mark.slurm


@pytest.fixture
def site(cluster: None, small_study: dict[str, Any], tmp_path: Path) -> Path:  # noqa: F811
    """A study's folder with an overlay, and the profile as this cluster needs it: jobs are polled with squeue."""
    overlay = copy.deepcopy(small_study)
    overlay["machine"].update(device="cpu", annotate_mem_mb=1500, train_mem_mb=1500)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(overlay))
    profile = yaml.safe_load((REPOSITORY / "slurm" / "config.yaml").read_text())
    profile |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1, "jobs": 2}
    for resources in profile["set-resources"].values():
        resources["gpu"] = 1
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "config.yaml").write_text(yaml.safe_dump(profile))
    return tmp_path


def doctor(site: Path, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code and findings."""
    done = subprocess.run(
        [warm_python(), "-m", "tokenlabel", "doctor", "--profile", "slurm", "--json", "--configfile", "study.yaml", *arguments],
        cwd=site, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def failed(findings: list[dict[str, str]]) -> list[str]:
    return [f"{finding['area']}: {finding['found']}" for finding in findings if finding["status"] == "fail"]


def change_profile(site: Path, **changes: Any) -> None:
    path = site / "slurm" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("script", "arguments"), [("setup.sh", "check"), ("setup.sh", "none"), ("stop.sh", "--wipe")]
)  # fmt: skip
def test_the_scripts_leave_a_foreign_cluster_alone(script: str, arguments: str, tmp_path: Path) -> None:
    """In a mount namespace of its own, where /etc/slurm is another site's."""
    (tmp_path / "slurm.conf").write_text("ClusterName=production\n")
    path = REPOSITORY / "tests" / "slurm" / "cluster" / script
    inside = f"mount --bind {shlex.quote(str(tmp_path))} /etc/slurm && exec {shlex.quote(str(path))} {arguments}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside], capture_output=True, text=True, check=False, timeout=60
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no mount namespace here")
    assert done.returncode == 1
    assert "is not ours: this machine belongs to a cluster, which is left alone" in done.stderr
    assert (tmp_path / "slurm.conf").read_text() == "ClusterName=production\n"


def test_a_site_that_is_well_here_and_on_its_nodes(site: Path) -> None:
    code, findings = doctor(site, "--submit", "--timeout", "90")
    assert failed(findings) == []
    assert code == 0
    said = [f"{finding['area']}: {finding['found']}" for finding in findings]
    assert any(re.match(r"slurm: partition gpu: 2 GPUs a node, jobs ask for 1", line) for line in said)
    assert any(re.match(r"slurm: partition gpu: time limit 24\.0 h, the longest job, ", line) for line in said)
    for partition in ("cpu", "gpu"):
        assert any(re.match(rf"node {partition}: .*sees the results folder", line) for line in said)
        assert any(re.match(rf"node {partition}: .*: decodes, ", line) for line in said)
    assert not (site / "results" / "doctor").exists()


def test_what_is_wrong_with_a_profile_and_with_nodes(site: Path) -> None:
    rules = yaml.safe_load((site / "slurm" / "config.yaml").read_text())["set-resources"]
    rules = {rule: found | {"slurm_partition": "cpu", "gpu": 8} for rule, found in rules.items()}
    rules["train_run"] = rules["train_run"] | {"slurm_partition": "gpus", "constraint": "a100"}
    change_profile(site, **{"set-resources": rules, "slurm-status-command": "sacct"})
    study = yaml.safe_load((site / "study.yaml").read_text())
    study["plan"] |= {"gpu": "cpu", "job_start_s": 1e6}
    (site / "study.yaml").write_text(yaml.safe_dump(study))
    code, findings = doctor(site)
    said = "\n".join(failed(findings))
    assert code == 1
    assert "partition gpus: the cluster has none of that name; it has cpu, gpu" in said
    assert "partition cpu: jobs ask for 8 GPUs of a node, its nodes have 2" in said
    assert re.search(r"partition cpu: time limit 24\.0 h, but the longest job, \w+, asks for ", said)
    assert "polled with sacct, which never answers without accounting" in said
    # the data are gone from the node, and the partition that sbatch is given is not there
    study["data_root"] = str(site / "not mounted")
    study["plan"] |= {"job_start_s": 8}
    (site / "study.yaml").write_text(yaml.safe_dump(study))
    change_profile(
        site, **{"set-resources": {"train_run": {"slurm_partition": "gpus"}}, "slurm-status-command": "squeue"}
    )
    code, findings = doctor(site, "--submit", "--timeout", "90")
    said = "\n".join(failed(findings))
    assert re.search(r"node cpu: .*not mounted: no such folder on this machine", said)
    assert re.search(r"node gpus: sbatch refuses the job \(.*invalid partition", said)


def test_a_partition_that_is_down_and_one_that_is_full(site: Path) -> None:
    subprocess.run(["scontrol", "update", "PartitionName=gpu", "State=DOWN"], check=True)
    try:
        _, findings = doctor(site, "--submit", "--timeout", "5")
    finally:
        subprocess.run(["scontrol", "update", "PartitionName=gpu", "State=UP"], check=True)
    assert "slurm: partition gpu: not up" in failed(findings)
    late = [finding["found"] for finding in findings if finding["area"] == "node gpu"]
    assert re.match(r"job \d+ did not start within 5 s \(PartitionDown\)", late[0])
    states = subprocess.run(["squeue", "-h", "-o", "%T"], capture_output=True, text=True, check=True).stdout
    assert "PENDING" not in states  # it takes its job back


def submit(site: Path, *arguments: str, warm: bool = True) -> str:
    """Submits Snakemake as the page says; returns the job. Warm: starts as tests/warm says, and Slurm's signals miss its jobs."""
    (site / "bin").mkdir()
    (site / "bin" / "snakemake").write_text(
        f'#!/bin/sh\nexec {warm_python() if warm else sys.executable} -m snakemake "$@"\n'
    )
    (site / "bin" / "snakemake").chmod(0o755)
    command = [
        "sbatch", "--parsable", "--partition", "cpu", "--mem", "1500", REPOSITORY / "slurm" / "snakemake.sbatch", *arguments,
        "--snakefile", REPOSITORY / "Snakefile", "--configfile", "study.yaml",
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{site / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(said_of_job: str, job: str, timeout_s: float = 120) -> str:
    """Waits until scontrol says something of a job; returns all that it says."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
        if re.search(said_of_job, shown):
            return shown
        if re.search(r"JobState=(FAILED|CANCELLED|TIMEOUT)", shown):
            break
        time.sleep(0.5)
    raise AssertionError(shown)


def planned_study(site: Path) -> Study:
    return Study.plan(read_configuration([REPOSITORY / "config.yaml", site / "study.yaml"]))


def test_snakemake_as_a_slurm_job(site: Path) -> None:
    marker = planned_study(site).data.marker
    job = submit(site, marker)
    wait_for(r"JobState=COMPLETED\b", job)
    said = (site / f"snakemake-{job}.out").read_text()
    assert re.search(r"Job \d+ has been submitted with SLURM jobid \d+", said)
    assert (site / marker).exists()


@pytest.mark.campaign
def test_near_its_time_limit_snakemake_goes_back_into_the_queue_and_finishes(site: Path) -> None:
    study = yaml.safe_load((site / "study.yaml").read_text())
    study["caps"]["epochs"] = study["recipes"]["demo"]["epochs"] = 100
    (site / "study.yaml").write_text(yaml.safe_dump(study))
    run = next(run for run in planned_study(site).runs.values() if run.labels is None)
    done = site / run.done(0)
    job = submit(site, run.done(0), warm=False)
    deadline = time.monotonic() + 120
    while not list(done.parent.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    subprocess.run(["scancel", "--signal", "USR1", "--batch", job], check=True)
    shown = wait_for(r"Restarts=1\b", job)
    assert "JobState=PENDING" in shown
    assert not done.exists()
    left = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
    assert left == [job]  # its own jobs are cancelled
    # Slurm waits two minutes before it starts a job again, so that the old one is gone from its node; here it is in seconds
    time.sleep(10)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for(r"JobState=COMPLETED\b", job, timeout_s=240)
    log = (site / "logs" / "runs" / run.name / "seed0" / "train.log").read_text()
    assert done.exists()
    assert "resuming from checkpoint-" in log


@pytest.mark.campaign
def test_first_light_as_the_page_has_it(site: Path) -> None:
    started = time.monotonic()
    job = submit(site, "first_light")
    wait_for(r"JobState=COMPLETED\b", job, timeout_s=400)
    table = (site / "results" / "first_light.csv").read_text()
    assert table.count("\n") == 14
    print(f"{time.monotonic() - started:.0f} s", (site / "results" / "first_light.md").read_text())
