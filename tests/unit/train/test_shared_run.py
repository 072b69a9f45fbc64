"""Whole runs in several real processes: the numbers of one process, also after a kill and in another number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.warm import warm_python
from tokenlabel.core.files import read_json, write_json
from tokenlabel.train.job import train_run
from tokenlabel.train.reading_order import ReadingOrder

from .conftest import Workplace
from .test_job import lines

Spec = dict[str, Any]
TOLERANCE = 1e-5  # relative, float32


def start(
    spec: Spec, workplace: Workplace, folder: Path, processes: int, seed: int = 0, python: str = "", **changes: Any
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    write_json(folder / "spec.json", spec)
    write_json(folder / "machine.json", workplace.machine | {"micro_batch": 3, "validate_every_epochs": 2} | changes)
    return subprocess.Popen(
        [
            python or warm_python(), "-m", "tokenlabel.engine.launch", "--processes", str(processes), "tokenlabel.train",
            "--spec", str(folder / "spec.json"), "--machine", str(folder / "machine.json"), "--log", str(folder / "log"),
            "--seed", str(seed), "--manifest", str(workplace.root / "manifest"), "--labels", str(workplace.labels),
            "--done", str(folder / "done.json"),
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr


@pytest.fixture
def alone(spec: Spec, workplace: Workplace, tmp_path: Path) -> Path:
    """The run in one process that all others must equal."""
    machine = workplace.machine | {"micro_batch": 3, "validate_every_epochs": 2}
    train_run(
        spec, machine, manifests=workplace.manifests, labels_folder=workplace.labels, start_folder=None, seed=0,
        done=tmp_path / "alone" / "done.json",
    )  # fmt: skip
    return tmp_path / "alone"


def assert_same_run(folder: Path, alone: Path) -> None:
    for found, expected in zip(lines(folder), lines(alone), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)
        for name in ("images", "skipped", "unlabeled", "val_images"):
            assert found.get(name) == expected.get(name)
    for name in ("model.safetensors", "model_ema.safetensors"):
        found, expected = load_file(folder / name), load_file(alone / name)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_two_processes_run_as_one_does(spec: Spec, workplace: Workplace, alone: Path, tmp_path: Path) -> None:
    finish(start(spec, workplace, tmp_path / "two", 2))
    assert_same_run(tmp_path / "two", alone)
    assert read_json(tmp_path / "two" / "done.json")["processes"] == 2
    logs = {path.name: path.read_text() for path in (tmp_path / "two").glob("log*")}  # one for each process
    assert logs.keys() == {"log", "log.rank1"}
    assert all("done in" in text for text in logs.values())
    assert "epoch 0" in logs["log"]


def test_a_missing_manifest_is_one_line_of_one_process(spec: Spec, workplace: Workplace, tmp_path: Path) -> None:
    process = start(spec, replace(workplace, root=tmp_path / "nowhere"), tmp_path, 2)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 2
    (said,) = [line for line in stderr.splitlines() if "error: " in line]
    assert "nowhere/manifest/manifest.done: the manifest is missing" in said


@pytest.mark.campaign  # as the one before, but inside the training; test_processes says a mistake there with light processes
def test_a_recipe_that_makes_no_sense_is_one_line_of_one_process(
    spec: Spec, workplace: Workplace, tmp_path: Path
) -> None:
    spec["recipe"]["warmup_epochs"] = 3
    process = start(spec, workplace, tmp_path, 2)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 2
    (said,) = [line for line in stderr.splitlines() if "error: " in line]
    assert "error: spec.json: recipe: warmup_epochs 3 must be below epochs 3" in said


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("before", "after", "sharding"), [(2, 4, "none"), (4, 1, "none"), (1, 2, "fsdp"), (2, 1, "fsdp"), (2, 2, "fsdp")]
)
def test_a_killed_run_goes_on_in_another_number_of_processes(
    spec: Spec, workplace: Workplace, alone: Path, tmp_path: Path, before: int, after: int, sharding: str
) -> None:
    folder = tmp_path / "run"
    process = start(spec, workplace, folder, before, sharding=sharding, checkpoint_seconds=0.001)
    deadline = time.monotonic() + 120
    while len(lines(folder)) < 1 or not list(folder.glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (folder / "done.json").exists()
    finish(start(spec, workplace, folder, after, sharding=sharding))
    assert_same_run(folder, alone)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.campaign)])
@pytest.mark.campaign
def test_a_process_without_a_readable_photograph_goes_on_and_a_killed_one_ends_the_run_within_a_minute(
    spec: Spec, workplace: Workplace, tmp_path: Path, processes: int
) -> None:
    """In its first step the second process has nothing to learn from, and must know what the others have measured."""
    folder = tmp_path / "run"
    spec["labels"] = None
    spec["recipe"] |= {
        "supervision": "hard", "class_target": "label", "token_weight": 0.0, "batch_size": processes, "epochs": 1000,
    }  # fmt: skip
    manifest = workplace.manifests["train"]
    bad = next(
        row for row in range(36) if (workplace.root / "data" / "train" / manifest.path(row)).stat().st_size == 500
    )
    seed = next(n for n in range(1000) if ReadingOrder(manifest, np.arange(36), spec["recipe"], n)(0)[1] == bad)
    process = start(
        spec, workplace, folder, processes, seed=seed, python=sys.executable, micro_batch=1
    )  # its children are asked
    deadline = time.monotonic() + 120
    while len(lines(folder)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    assert [(line["images"], line["skipped"]) for line in lines(folder)[:2]] == [(35, 1)] * 2
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    # torch warns of the layout of a single photograph's gradients
    assert [line for line in stderr.splitlines() if "error: " in line] == [
        f"error: process 1 of {processes} (pid {children[1]}) was killed by SIGKILL (out of memory?); the others were stopped."
    ]
    assert "Traceback" not in stderr
