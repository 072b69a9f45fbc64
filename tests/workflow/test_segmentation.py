"""Segmentation in the DAG: experiments are data, and a tiny study runs from masks to its table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.scenes import add_segmentation, write_scenes

from .conftest import planned_jobs, run_snakemake

OWN = {"question": "Does a head of one level do?", "paper": "none (ours)", "seeds": [0, 1]}


def test_an_added_experiment_is_exactly_its_jobs(tmp_path: Path) -> None:
    """Two of its rows are trainings that the study has already, with evaluations and backbones; a backbone is shared."""
    rows = [
        {"name": "upernet", "set": {}},
        {"name": "narrow", "set": {"head.channels": 64}, "against": "upernet"},
        {"name": "random", "set": {"backbone": "random", "segment.iterations": 8000}},
    ]
    overlay = {"segmentation": {"experiments": {"own": {**OWN, "rows": rows}}}}
    finished = run_snakemake(tmp_path, "-n", "results/own.csv", overlay=overlay)
    assert planned_jobs(finished) == {
        "make_manifest": 1, "annotate_shard": 64, "train_run": 2, "make_scene_manifest": 1, "train_segmentation": 6,
        "evaluate_segmentation": 6, "make_segmentation_table": 1,
    }  # fmt: skip

    curves = run_snakemake(tmp_path, "-n", "results/figures/curves_own.png", overlay=overlay)
    assert planned_jobs(curves) == {
        "make_manifest": 1, "annotate_shard": 64, "train_run": 2, "make_scene_manifest": 1, "train_segmentation": 6,
        "draw_segmentation_curves": 1,
    }  # fmt: skip


@pytest.fixture
def tiny(overlay: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Overlay: eight scenes to train on; FCN on a backbone of hard labels and on one of random weights."""
    write_scenes(tmp_path / "scenes", train=8, val=4)
    add_segmentation(overlay, tmp_path / "scenes")
    return overlay


def test_a_tiny_study_runs_from_masks_to_its_table(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["machine"]["validate_every_epochs"] = 1
    made = ["results/transfer.csv", "results/figures/curves_transfer.png", "results/figures/transfer_views.png"]
    finished = run_snakemake(tmp_path, *made, "--cores", "2", overlay=tiny)
    assert finished.returncode == 0, finished.stderr[-5000:]
    random, hard = csv.DictReader(io.StringIO((tmp_path / "results" / "transfer.csv").read_text(encoding="utf-8")))
    assert (random["state"], hard["state"], hard["against"], hard["gain_seeds"]) == ("done", "done", "random", "1")
    assert float(hard["gain_miou_ms_mean"]) == pytest.approx(
        float(hard["miou_ms_mean"]) - float(random["miou_ms_mean"]), abs=0.011
    )
    assert "iterations 160000->4" in hard["capped"]
    assert (tmp_path / "results" / "figures" / "transfer.png").stat().st_size > 10_000
    folder = tmp_path / "results" / "segmentation" / hard["run"]
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    (backbone,) = (tmp_path / "results" / "runs").iterdir()
    assert backbone.name.rsplit("-", 1)[-1] == spec["start"]
    (evaluation,) = (folder / "seed0").glob("evaluation-*.json")
    assert {path.suffix for path in (folder / "seed0").glob("evaluation-*")} == {".json", ".csv", ".png"}
    assert json.loads(evaluation.read_text(encoding="utf-8"))["images"] == 4
    with (tmp_path / "results/figures/curves_transfer.csv").open(encoding="utf-8", newline="") as file:
        curves = list(csv.DictReader(file))
    assert [(line["name"], line["epoch"]) for line in curves] == [("random", "0"), ("hard", "0")]
    assert all(float(line["pixel_loss"]) > 0 and 0 <= float(line["miou"]) <= 100 for line in curves)
    for name in ("curves_transfer", "transfer_views"):
        with Image.open(tmp_path / "results" / "figures" / f"{name}.png") as figure:
            assert figure.width > 600
    tiny["segmentation_root"] = "/moved"  # where the scenes are changes no number
    tiny["segmentation"]["testing"]["flip"] = False
    measured_anew = planned_jobs(run_snakemake(tmp_path, "-n", "results/transfer.csv", overlay=tiny))
    assert measured_anew == {"evaluate_segmentation": 2, "make_segmentation_table": 1}
