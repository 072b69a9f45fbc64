"""The walk-through of examples/custom_folder, with fewer photographs: folder, `tokenlabel init`, Snakemake, table, `predict`."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import time
from pathlib import Path

from tests.warm import warm_python

from .conftest import REPOSITORY, run_snakemake

LOOSE = 4  # times; other tests run beside this one, and a job of three photographs is all start


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [warm_python(), *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


def test_from_a_folder_of_photographs_to_a_table(tmp_path: Path) -> None:
    example = REPOSITORY / "examples" / "custom_folder" / "make_photographs.py"
    _run(tmp_path, str(example), "my photos", "--crops", "3")
    shown = _run(tmp_path, "-m", "tokenlabel", "init", "my photos", "--minutes", "0.1").stdout
    estimated = re.search(r"([\d.]+) min  in all", shown)
    assert estimated
    directory = tmp_path / "my_photos_study"
    assert "--directory my_photos_study --configfile my_photos.yaml" in shown
    before = time.monotonic()
    finished = run_snakemake(
        directory,
        "results/own_photographs.csv",
        "--cores",
        "1",
        "--configfile",
        str(tmp_path / "my_photos.yaml"),
        timeout_s=600,
    )
    minutes = (time.monotonic() - before) / 60
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert 1 / LOOSE < minutes / float(estimated[1]) < LOOSE
    rows = list(csv.DictReader((directory / "results" / "own_photographs.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["annotator_alone", "fine_tune", "fine_tune_tokens"]
    assert len({row["val_images"] for row in rows}) == 1
    assert float(rows[0]["top1_mean"]) > 50  # four classes
    _run(
        tmp_path, "-m", "tokenlabel", "predict", str(directory / "results" / "runs" / rows[2]["run"] / "seed0"),
        "my photos/Straße", "--out", "classes.csv",
    )  # fmt: skip
    assert len((tmp_path / "classes.csv").read_text(encoding="utf-8").splitlines()) == 1 + 9
