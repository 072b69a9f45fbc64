"""A small but real study: photographs, one real annotator, a tiny student, run once by Snakemake for all tests."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import made_once
from tests.warm import warm_python

REPOSITORY = Path(__file__).resolve().parents[2]
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def run_snakemake(
    directory: Path,
    *arguments: str,
    overlay: dict[str, Any] | None = None,
    timeout_s: int = 420,
    python: str | None = None,
    snakefile: Path = REPOSITORY / "Snakefile",
) -> subprocess.CompletedProcess[str]:
    """Runs the repository's workflow in a directory; the overlay is written there as study.yaml.

    Snakemake and its jobs start as tests/warm says, unless another Python is given.
    """
    command = [python or warm_python(), "-m", "snakemake", "--snakefile", str(snakefile), *arguments]
    command += ["--directory", str(directory)]
    if overlay is not None:
        (directory / "study.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        command += ["--configfile", str(directory / "study.yaml")]
    return subprocess.run(command, cwd=snakefile.parent, capture_output=True, text=True, timeout=timeout_s, check=False)


def planned_jobs(finished: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Rule -> count of a dry run's job table."""
    assert finished.returncode == 0, finished.stderr[-3000:]
    text = finished.stdout + finished.stderr
    if "Nothing to be done" in text:
        return {}
    lines = text.split("Job stats:", 1)[1].splitlines()[3:]
    jobs = {}
    for line in lines:
        words = line.split()
        if len(words) != 2 or not words[1].isdigit():
            break
        jobs[words[0]] = int(words[1])
    jobs.pop("total", None)
    return jobs


def everything_under(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def small_study(photographs: Path) -> dict[str, Any]:
    """Overlay: 24 photographs, one annotator at 160 px, two epochs of a tiny student, hard and token labels."""
    demo = yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text(encoding="utf-8"))
    study = copy.deepcopy(demo)
    study["data_root"] = str(photographs)
    study["dataset"]["name"] = "crops"
    study["labels"] = {"image_px": 160, "shards": 2}
    study["annotators"] = {"lite0": {**demo["annotators"]["efficientnet_lite0"], "grid": [5, 5]}}
    study["select"] = {"annotators": ["lite0"], "experiments": ["main", "ablation_annotators"]}
    study["defaults"]["annotator"] = "lite0"
    study["machine"].update(validate_every_epochs=1)
    study["models"]["lvvit_small"]["eval_crop"] = 0.95  # not the training's validation_crop
    study["caps"] = {"epochs": 2, "images": 24, "depth": 2, "width": 48, "image_px": 64, "finetune_px": 80, "seeds": 1}
    return study


@pytest.fixture(scope="session")
def _finished_study(small_study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(directory: Path) -> None:
        finished = run_snakemake(directory, "all", "--cores", "2", overlay=small_study)
        assert finished.returncode == 0, finished.stderr[-5000:]

    return made_once(tmp_path_factory, "study", make)


@pytest.fixture
def finished_study(_finished_study: Path) -> Path:
    """The directory of a study that ran to its end. Tests may plan in it but not run."""
    return _finished_study


@pytest.fixture
def overlay(small_study: dict[str, Any]) -> dict[str, Any]:
    """The small study's overlay, for a test to change."""
    return copy.deepcopy(small_study)
