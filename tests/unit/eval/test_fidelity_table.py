"""The table of label fidelity: a row per annotator, in order; the figure holds them all."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.files import write_json

MEASURES = ("cosine", "top1_agreement", "kl", "own_class_any_cell", "own_class_pooled_top5", "cell_entropy")


def measured(annotator: str, mean: float) -> dict[str, Any]:
    return {
        "annotator": annotator, "labels": f"{annotator}-1a2b3c4d", "label_mass": "published", "labeled": 120, "unreadable": 3,
        "photographs": 6, "crops": 2,
        "measures": {name: {"mean": mean, "low": mean - 0.1, "high": mean + 0.2} for name in MEASURES},
        "entropy": {"highest": 6.9, "share": [0.5, 0.25, 0.25, 0.0]},
    }  # fmt: skip


def run(folder: Path, *files: Path) -> int:
    places = ["--csv", str(folder / "out.csv"), "--figure", str(folder / "out.png")]
    return main(["table", "fidelity", *map(str, files), *places])


def test_a_row_per_annotator_and_a_figure_that_grows_with_them(tmp_path: Path) -> None:
    files, heights = [], []
    for count, name in enumerate(("second", "first", "third"), 1):
        files.append(tmp_path / f"{name}.json")
        write_json(files[-1], measured(name, count / 4))
        assert run(tmp_path, *files) == 0
        with Image.open(tmp_path / "out.png") as figure:
            heights.append(figure.height)
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["annotator"] for row in rows] == ["second", "first", "third"]
    assert [(row["kl"], row["kl_low"], row["kl_high"]) for row in rows][:2] == [
        ("0.2500", "0.1500", "0.4500"), ("0.5000", "0.4000", "0.7000"),
    ]  # fmt: skip
    assert {(row["unreadable"], row["photographs"]) for row in rows} == {("3", "6")}
    assert heights == sorted(set(heights))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"measures": {name: {"mean": float("nan"), "low": 0.0, "high": 1.0} for name in MEASURES}}, "cosine.mean is nan"),
        ({"measures": []}, "no measurement of label fidelity"),
        ({"measures": {"cosine": {"mean": 1.0, "low": 0.0, "high": 1.0}}}, "no measurement of label fidelity"),
        ({"measures": {name: {"mean": "high", "low": 0.0, "high": 1.0} for name in MEASURES}}, "no measurement of label fidelity"),
        ({"entropy": {"highest": 6.9, "share": []}}, "no measurement of label fidelity"),
    ],
    ids=["NaN", "list", "less than the first", "words", "no histogram"],
)  # fmt: skip
def test_a_damaged_measurement_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    write_json(tmp_path / "sound.json", measured("first", 0.5))
    write_json(tmp_path / "other.json", measured("second", 0.5) | changes)
    for files in (["sound.json", "other.json"], ["other.json"]):
        assert run(tmp_path, *(tmp_path / file for file in files)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "other.json: " in line
        assert said in line
        assert line.endswith("Delete it and run snakemake.")
    assert not (tmp_path / "out.csv").exists()


def test_what_is_missing_or_no_measurement_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "absent.json") == 2
    assert "absent.json: the fidelity of labels is missing" in capsys.readouterr().err
    write_json(tmp_path / "other.json", {"top1": 80.0})
    assert run(tmp_path, tmp_path / "other.json") == 2
    assert "other.json: no measurement of label fidelity. Delete it" in capsys.readouterr().err
