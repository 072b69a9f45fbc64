"""`--sdm conda` and `--sdm apptainer`: what Snakemake asks for, and that jobs run with what it brings.

There is no conda channel and no Apptainer here. Two small programs stand for them: `conda` makes a virtual environment where
Snakemake wants one (this one's packages lie in it), `apptainer` runs the command with another PATH. Snakemake, its calls of both,
the post-deploy script and the jobs are real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import REPOSITORY

CONDA = """#!/bin/bash
set -euo pipefail
case "$1 ${{2:-}}" in
  "info --json") echo '{{"conda_prefix": "{prefix}", "platform": "linux-64"}}' ;;
  "config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create")
    while [ $# -gt 1 ]; do case $1 in --file) file=$2 ;; --prefix) environment=$2 ;; esac; shift; done
    cat "$file" >> "{prefix}/asked.yaml"
    {python} -m venv --without-pip "$environment"
    echo {packages} > "$(echo "$environment"/lib/python*/site-packages)/others.pth" ;;
  *) echo "conda 24.7.1" ;;
esac
"""
APPTAINER = """#!/bin/bash
set -euo pipefail
if [ "$1" != exec ] && [[ " $* " != *" exec "* ]]; then echo "apptainer version 1.3.6"; exit; fi
echo "$*" >> "{prefix}/asked.txt"
while [ "$1" != bash ]; do shift; done
unset PYTHONPATH
PATH="{prefix}/image/bin:$PATH" exec "$@"
"""
# pip builds with the setuptools that are here, for there may be no index
ENVIRONMENT = os.environ | {"PIP_NO_BUILD_ISOLATION": "0"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the workflow needs, which a user may not write into."""
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("Snakefile", "config.yaml", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
        shutil.copy(REPOSITORY / name, place)
    for name in ("rules", "envs", "slurm", "profiles", "src"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.sif"))
    return place


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / name).write_text(
        text.format(prefix=folder, python=sys.executable, packages=sysconfig.get_path("purelib"))
    )
    (folder / "bin" / name).chmod(0o755)


def price_study(checkout: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Makes results/plan.csv, the smallest job, in a folder of its own."""
    study = folder / "study"
    study.mkdir()
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "results/plan.csv",
        "--snakefile",
        str(checkout / "Snakefile"),
        "--cores",
        "1",
    ]
    command += ["--printshellcmds", "--directory", str(study), *words]
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    finished = subprocess.run(
        command, env=ENVIRONMENT | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert (study / "results" / "plan.csv").stat().st_size > 1000
    return finished


@pytest.mark.campaign
def test_conda_environments_get_the_package_after_they_are_made(checkout: Path, tmp_path: Path) -> None:
    program(tmp_path, "conda", CONDA)
    (tmp_path / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    before = {str(path) for path in checkout.rglob("*")}
    finished = price_study(checkout, tmp_path, "--sdm", "conda")
    assert (tmp_path / "asked.yaml").read_text() == (REPOSITORY / "envs" / "eval.yaml").read_text()
    assert re.search(r"(?<![/\w])python -m tokenlabel", finished.stderr + finished.stdout)
    (package,) = tmp_path.glob("study/.snakemake/conda/*/lib/python*/site-packages/tokenlabel")
    assert (package / "core" / "paper.csv").exists()
    assert {
        path for path in map(str, checkout.rglob("*")) if "__pycache__" not in path
    } == before  # nothing is built in it


@pytest.mark.campaign
def test_jobs_run_in_the_image(checkout: Path, tmp_path: Path) -> None:
    image = checkout / "envs" / "tokenlabel.sif"
    image.write_bytes(b"")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], env=ENVIRONMENT, check=True, timeout=120
    )
    (packages,) = (tmp_path / "image").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "tokenlabel").symlink_to(checkout / "src")
    program(tmp_path, "apptainer", APPTAINER)
    program(tmp_path, "singularity", APPTAINER)
    price_study(checkout, tmp_path, "--sdm", "apptainer")
    asked = (tmp_path / "asked.txt").read_text()
    assert str(image) in asked
    assert "python -m tokenlabel" in asked
    assert sys.executable not in asked
