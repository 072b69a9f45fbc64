"""`snakemake results/published.csv`: planned without any file, made of real and of released files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenlabel.core.files import read_json
from tokenlabel.models import create_model

from .conftest import planned_jobs, run_snakemake

TARGET = "results/published.csv"


def test_it_is_planned_before_anything_is_trained(tmp_path: Path) -> None:
    overlay = {"data_root": "/no/such/folder", "weights_root": "/no/such/folder"}
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", TARGET, overlay=overlay))
    assert jobs == {"make_manifest": 1, "evaluate_published": 8, "make_published": 1}
    overlay["evaluation"] = {"test_sets": ["imagenet_a", "imagenet_v2"]}
    assert planned_jobs(run_snakemake(tmp_path, "-n", TARGET, overlay=overlay)) == jobs


def test_real_and_released_checkpoints_are_measured(overlay: dict[str, Any], tmp_path: Path) -> None:
    """EfficientNet-Lite0's own weights, and an LV-ViT-T in the layout of the release."""
    torch.manual_seed(0)
    model = create_model("lvvit_t", 1000, 64)
    torch.save(
        {"epoch": 309, "arch": "lvvit_t", "state_dict": {f"module.{n}": v for n, v in model.state_dict().items()}},
        tmp_path / "lvvit_t.pth",
    )
    overlay["weights_root"] = str(tmp_path)
    overlay["published"]["small_t"] = {
        "architecture": "lvvit_t", "weights": "file:lvvit_t.pth", "image_px": 64, "eval_crop": 0.9, "dataset": "crops",
        "top1": 79.1, "source": "https://example.org/t",
    }  # fmt: skip
    overlay["select"]["published"] = ["efficientnet_lite0", "small_t"]
    made = run_snakemake(tmp_path, TARGET, "--cores", "2", overlay=overlay)
    assert made.returncode == 0, made.stderr[-3000:]
    lite0, small = csv.DictReader((tmp_path / TARGET).read_text().splitlines())
    assert float(lite0["top1"]) >= 60  # measured: 80.0; a wrong class order gives 0
    assert (lite0["verdict"], lite0["printed_top1"], lite0["images"]) == ("", "", "40")
    assert lite0["weights_sha256"].startswith("57934424")
    assert small["verdict"].startswith("differs by -")  # its weights are random
    assert float(small["difference"]) == pytest.approx(float(small["top1"]) - 79.1)
    for place in sorted((tmp_path / "results" / "published").glob("*/evaluation.json")):
        found = read_json(place)
        assert found["images_per_s"] > 0
        with place.with_suffix(".classes.csv").open() as file:
            classes = list(csv.DictReader(file))
        assert len(classes) == 1000
        right = sum(float(row["top1"] or 0) * int(row["images"]) for row in classes)
        assert right / found["val_images"] == pytest.approx(found["top1"])
    assert "differs by" in (tmp_path / "results" / "published.md").read_text()
    assert (tmp_path / "results" / "figures" / "published.png").stat().st_size > 5000
    assert planned_jobs(run_snakemake(tmp_path, "-n", TARGET, overlay=overlay)) == {}
