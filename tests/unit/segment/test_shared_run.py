"""A segmentation run in two real processes: the numbers of one process, also where one of them has no scene it can read."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.warm import warm_python
from tokenlabel.core.files import read_json, write_json

from .conftest import Workplace, make_workplace
from .test_job import lines, train

TOLERANCE = 1e-4  # relative, float32: gradients are added in another order


def start(spec: dict[str, Any], workplace: Workplace, folder: Path, **changes: Any) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    write_json(folder / "spec.json", spec)
    write_json(folder / "machine.json", workplace.machine | changes)
    return subprocess.Popen(
        [
            warm_python(), "-m", "tokenlabel.engine.launch", "--processes", "2", "tokenlabel.segment",
            "--spec", str(folder / "spec.json"), "--machine", str(folder / "machine.json"), "--log", str(folder / "log"),
            "--manifest", str(workplace.root / "manifest"), "--done", str(folder / "done.json"),
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr


def assert_same_run(folder: Path, alone: Path) -> None:
    for found, expected in zip(lines(folder), lines(alone), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)
    one, other = (load_file(place / "model.safetensors") for place in (folder, alone))
    for key, value in other.items():
        # of a tensor, not of each weight: AdamW makes a whole step of a gradient that is next to nothing but rounding, such as a
        # bias' before a norm; steps of 3e-3 that went another way would be far above this
        apart = (one[key].float() - value.float()).norm()
        assert apart <= 1e-3 * value.float().norm() + 1e-3, key


def test_two_processes_run_as_one_does(spec: dict[str, Any], workplace: Workplace, tmp_path: Path) -> None:
    """Four micro-batches of one step: two of each process; heads' norms see the same images, so all is equal to rounding."""
    spec["recipe"] |= {"batch_size": 8, "iterations": 6, "interval_iterations": 3, "ema_decay": 0.9}
    machine = {"validate_every_epochs": 1, "log_every_steps": 1}
    train(spec, workplace, tmp_path / "alone", machine)
    finish(start(spec, workplace, tmp_path / "two", **machine))
    assert_same_run(tmp_path / "two", tmp_path / "alone")
    assert read_json(tmp_path / "two" / "done.json")["processes"] == 2
    (first, second) = (line for line in lines(tmp_path / "two") if "miou" in line)
    assert first["val_images"] == second["val_images"] == 6


@pytest.mark.campaign
def test_a_process_without_a_readable_scene_goes_on(spec: dict[str, Any], tmp_path: Path) -> None:
    """Both heads must take part in its idle pass, or the others wait for their gradients."""
    place = make_workplace(tmp_path)
    for victim in sorted((tmp_path / "data" / "images" / "training").iterdir())[:6]:
        victim.write_bytes(b"x" * victim.stat().st_size)
    machine = {"segment_micro_batch": 1, "log_every_steps": 1}
    spec["recipe"] |= {"batch_size": 2}
    train(spec, place, tmp_path / "alone", machine)
    finish(start(spec, place, tmp_path / "two", **machine))
    found = [line for line in lines(tmp_path / "two") if "step" not in line]
    assert sum(line["images"] for line in found) == 12
    assert sum(line["skipped"] for line in found) == 12
    assert_same_run(tmp_path / "two", tmp_path / "alone")
    assert torch.isfinite(load_file(tmp_path / "two" / "model.safetensors")["head.classifier.weight"]).all()
