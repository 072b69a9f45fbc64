"""The status of a study whose trainings really run, are stopped, killed, and fail."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study
from tokenlabel.eval.status import JobStatus, gather

from .conftest import REPOSITORY, run_snakemake

DEADLINE_S = 240


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    until = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.1)
    return found


@pytest.mark.campaign
def test_a_training_that_runs_is_suspended_killed_and_fails(small_study: dict[str, Any], tmp_path: Path) -> None:
    overlay = copy.deepcopy(small_study)
    overlay["caps"]["epochs"] = 400  # it shall not end by itself
    overlay["recipes"]["demo"]["epochs"] = 400
    overlay["machine"].update(validate_every_epochs=0)
    overlay["select"] = {"annotators": ["lite0"], "experiments": ["ablation_annotators"]}
    overlay["experiments"]["ablation_annotators"]["grid"] = {"annotator": "selected"}
    (tmp_path / "study.yaml").write_text("", encoding="utf-8")
    dry = run_snakemake(tmp_path, "-n", "all", overlay=overlay)
    assert dry.returncode == 0, dry.stderr[-3000:]
    study = Study.plan(read_configuration([REPOSITORY / "config.yaml", tmp_path / "study.yaml"]))
    run = next(row.run for row in study.tables["ablation_annotators"].rows if row.name == "hard_labels")
    done = run.done(0)

    def training() -> JobStatus:
        planned = Study.plan(read_json(tmp_path / "results" / "study.json"))
        return next(job for job in gather(tmp_path, planned, "results/study.json").jobs if job.path == done)

    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), done, "--cores", "1",
        "--directory", str(tmp_path), "--configfile", str(tmp_path / "study.yaml"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        metrics = tmp_path / done.replace("done.json", "metrics.jsonl")
        wait_for(lambda: metrics.exists() and '"seconds"' in metrics.read_text(), process)
        running = training()
        assert running.state == "running"
        assert running.epochs == run.epochs
        assert running.epochs_done is not None
        assert running.epochs_done >= 1
        assert running.remaining_s is not None
        assert running.remaining_s > 0
        job = read_json(metrics.with_name("run.lease"))["pid"]
        os.kill(job, signal.SIGSTOP)
        assert training().state == "stalled"
        os.kill(job, signal.SIGCONT)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    until = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{job}").exists():  # the kernel takes a moment to end a large process
        assert time.monotonic() < until
        time.sleep(0.1)
    killed = training()
    assert killed.state == "interrupted"
    assert killed.epochs_done is not None
    assert killed.epochs_done >= 1
    assert "last line: " in killed.reason

    # the photographs were moved: the next attempt, here by hand, fails, and its log says why
    machine = read_json(tmp_path / "results" / "machine.json") | {"data_root": "/data/moved"}
    write_json(tmp_path / "results" / "machine.json", machine)
    failed = subprocess.run(
        [
            sys.executable, "-m", "tokenlabel.train", "--spec", f"{run.folder}/spec.json",
            "--machine", "results/machine.json", "--manifest", study.data.folder, "--seed", "0", "--done", done,
            "--log", f"logs/runs/{run.name}/seed0/train.log",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    after = training()
    assert after.state == "failed", after
    assert after.reason.startswith("data_root /data/moved: no such folder")
    assert after.log.endswith("seed0/train.log")
