"""The record of a study: its page's tables follow from the committed CSV, and the statistics are what they say."""

from __future__ import annotations

import base64
import csv
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from bench.record import read_results

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """docs/studies/record_tinyimagenet20.py, which is a script and in no package."""
    path = REPOSITORY / "docs" / "studies" / "record_tinyimagenet20.py"
    spec = importlib.util.spec_from_file_location("record_tinyimagenet20", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["record_tinyimagenet20"] = module
    spec.loader.exec_module(module)
    return module


def test_the_tables_lines_are_those_of_the_csv(study: ModuleType) -> None:
    about = {"when", "commit", "machine"}
    recorded = [{k: v for k, v in line.items() if k not in about} for line in read_results("tinyimagenet20")]
    expected = list(study.summarise(study.read_runs()))
    assert len(recorded) == len(expected) > 4
    for found, line in zip(recorded, expected, strict=True):
        assert found == pytest.approx(line), "run docs/studies/record_tinyimagenet20.py"


def test_the_csvs_columns_fit_each_other(study: ModuleType) -> None:
    for row in study.read_runs():
        right = study.unpack_right(row["right"], row["val_images"])
        assert 100 * right.mean() == pytest.approx(row["top1"], abs=0.001), (row["arm"], row["seed"])


def test_every_arm_has_three_seeds_on_the_main_size(study: ModuleType) -> None:
    main = [(row["arm"], row["seed"]) for row in study.read_runs() if row["train_images"] == 8000]
    assert {(arm, seed) for arm in ("hard", "relabel", "token", "token_20") for seed in (0, 1, 2)} <= set(main)


def run(arm: str, seed: int, right: np.ndarray[Any, Any]) -> dict[str, Any]:
    top1 = 100 * float(right.mean())
    return {
        "train_images": 10, "parameters_k": 100, "arm": arm, "label": arm, "seed": seed, "epochs": 1, "top1": top1,
        "class_top1": top1, "token_head": "token", "token_agreement": top1 / 2, "image_agreement": top1 / 3, "token_kl": 1.0,
        "val_images": len(right),
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
    }  # fmt: skip


def test_differences_are_paired_by_seed_and_have_both_errors(study: ModuleType) -> None:
    rng = np.random.default_rng(3)
    hard = [rng.random(400) < share for share in (0.3, 0.5, 0.7)]  # seeds differ far more than arms
    token = [right | (rng.random(400) < 0.1) for right in hard]
    rows = [run(arm, seed, r) for arm, rs in (("hard", hard), ("token", token)) for seed, r in enumerate(rs)]
    rows.append(run("token", 3, token[0]))  # of a seed that the other arm has not
    (line,) = [line for line in study.summarise(rows) if line["kind"] == "pair" and line["field"] == "top1"]
    top1 = [[100 * right.mean() for right in arm] for arm in (token, hard)]
    expected = ttest_rel(*top1)
    interval = expected.confidence_interval(0.95)
    assert line["runs"] == 3
    assert (line["low"], line["high"]) == pytest.approx((interval.low, interval.high))
    per_photograph = np.mean([one.astype(float) - other for one, other in zip(token, hard, strict=True)], axis=0)
    error = 100 * per_photograph.std() / np.sqrt(400)
    reach = (line["photographs_high"] - line["photographs_low"]) / 2
    assert line["photographs_low"] < line["mean"] < line["photographs_high"]
    assert reach == pytest.approx(1.96 * error, rel=0.05)


def test_the_figure_shows_both_sizes(study: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        run(arm, seed, rng.random(200) < 0.5) | {"train_images": images}
        for images in (10, 20) for arm in ("hard", "token") for seed in range(3)
    ]  # fmt: skip
    study.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


# --- CamVid ---


@pytest.fixture(scope="module")
def camvid() -> ModuleType:
    """docs/studies/record_camvid.py."""
    return importlib.import_module("docs.studies.record_camvid")


def segmentation_run(arm: str, seed: int, miou: float) -> dict[str, Any]:
    return {
        "arm": arm, "label": arm, "seed": seed, "iterations": 10, "miou": miou, "pixel_accuracy": miou + 20,
        "miou_multi": miou + 1, "pixel_accuracy_multi": miou + 21, "iou sky": miou + 30,
        "iou pole": None if arm == "hard" else miou,
        "images": 101, "parameters_k": 400, "train_seconds": 60, "evaluation_seconds": 6,
    }  # fmt: skip


def camvid_rows() -> list[dict[str, Any]]:
    found = {"random": (20.0, 22.0, 24.0), "hard": (30.0, 33.0, 33.0), "token": (32.0, 34.0, 36.0)}
    return [segmentation_run(arm, seed, miou) for arm, values in found.items() for seed, miou in enumerate(values)]


def test_segmentation_is_compared_within_a_seed(camvid: ModuleType) -> None:
    lines = list(
        camvid.summarise([*camvid_rows(), segmentation_run("token", 3, 90.0)])
    )  # a seed that the others have not
    pairs = {(line["arm"], line["over"]): line for line in lines if line["kind"] == "pair" and line["field"] == "miou"}
    interval = ttest_rel((32, 34, 36), (30, 33, 33)).confidence_interval(0.95)
    line = pairs["token", "hard"]
    assert line["mean"] == pytest.approx(2.0)
    assert (line["low"], line["high"]) == pytest.approx((interval.low, interval.high))
    assert (line["runs"], line["above"]) == (3, 3)
    classes = {line["class"]: line for line in lines if line["kind"] == "class"}
    assert classes["sky"]["mean"] == pytest.approx(2.0)
    assert classes["pole"]["hard"] is None  # nowhere, so there is nothing to compare
    assert classes["pole"]["mean"] is None
    assert classes["pole"]["random"] == pytest.approx(22.0)


def test_what_is_recorded_of_segmentation_can_be_read_and_drawn(camvid: ModuleType, tmp_path: Path) -> None:
    rows = camvid_rows()
    with open(tmp_path / "camvid.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert camvid.read_runs(tmp_path / "camvid.csv") == rows
    camvid.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_tables_lines_of_segmentation_are_those_of_the_csv(camvid: ModuleType) -> None:
    about = {"when", "commit", "machine"}
    recorded = [{k: v for k, v in line.items() if k not in about} for line in read_results("camvid")]
    expected = (
        list(camvid.summarise(camvid.read_runs())) if camvid.CSV.exists() else []
    )  # until it is run neither is there
    assert len(recorded) == len(expected)
    for found, line in zip(recorded, expected, strict=True):
        assert found == pytest.approx(line), "run docs/studies/record_camvid.py"
