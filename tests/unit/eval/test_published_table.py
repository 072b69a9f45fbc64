"""The table of published checkpoints: what agrees, what differs, and evaluations that are none."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenlabel.core.errors import DataError
from tokenlabel.core.files import write_json
from tokenlabel.core.study import Study
from tokenlabel.eval.published_table import as_csv, as_markdown, draw, published_figure, read_rows, verdict
from tokenlabel.eval.style import styled

from .test_figures import assert_text_on_page

NUMBERS = {
    "top1": 83.25, "top5": 96.0, "ece": 2.0, "val_images": 50000, "val_skipped": 0, "parameters_m": 26.152, "gmacs": 6.57,
    "weights": "x.pth.tar", "weights_sha256": "ab" * 32,
}  # fmt: skip


def evaluation_of(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An evaluation that belongs into the folder of a row of the plan."""
    return {"digest": Path(row["evaluation"]).parent.name.rsplit("-", 1)[-1], **NUMBERS, **changes}


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(83.2 - 83.3, "agrees"), (0.1, "agrees"), (0.0, "agrees"), (-0.11, "differs by -0.11"), (57 - 79.0, "differs by -22.00"),
     (0.3, "differs by +0.30"), (None, "")],
)  # fmt: skip
def test_within_a_tenth_agrees(difference: float | None, expected: str) -> None:
    assert verdict(difference) == expected


def test_ours_stands_beside_the_printed_number(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["select"]["published"] = ["lvvit_s", "lvvit_m_448"]
    plan = Study.plan(raw_config).published.as_json()
    write_json(tmp_path / plan["rows"][0]["evaluation"], evaluation_of(plan["rows"][0], real_top1=88.0))
    write_json(tmp_path / plan["rows"][1]["evaluation"], evaluation_of(plan["rows"][1]))
    rows = read_rows(plan, tmp_path)
    small, medium = csv.DictReader(io.StringIO(as_csv(rows)))
    assert [small[name] for name in ("name", "image_px", "crop", "interpolation", "top1", "printed_top1", "difference")] == [
        "lvvit_s", "224", "0.9", "bicubic", "83.25", "83.30", "-0.05",
    ]  # fmt: skip
    assert (small["verdict"], small["real_top1"], small["printed_real_top1"]) == ("agrees", "88.00", "88.10")
    assert (medium["verdict"], medium["real_top1"], medium["printed_real_top1"]) == ("differs by -2.25", "", "")
    page = as_markdown(plan, rows)
    assert "| lvvit_s | 224 | 0.9 | 83.25 | 83.30 | -0.05 | agrees |" in page
    assert f"| {'ab' * 32} | https://github.com/zihangJiang/TokenLabeling/releases/" in page
    with styled():
        figure = published_figure(plan, rows)
        assert_text_on_page(figure)
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["ours", "printed"]
    draw(plan, rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20  # not an empty sheet
        pixels = np.asarray(picture.convert("RGB"))
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 255).all() for edge in edges)  # neither names nor legend are cut off


def test_numbers_printed_for_other_photographs_are_not_compared(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["dataset"]["name"] = "mine"
    raw_config["select"]["published"] = ["lvvit_s"]
    plan = Study.plan(raw_config).published.as_json()
    write_json(tmp_path / plan["rows"][0]["evaluation"], evaluation_of(plan["rows"][0]))
    (row,) = read_rows(plan, tmp_path)
    assert (row.printed_top1, row.difference, row.verdict) == (None, None, "")
    draw(plan, [row], tmp_path / "figure.png")


def test_what_is_no_evaluation_is_named(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["select"]["published"] = ["lvvit_s"]
    plan = Study.plan(raw_config).published.as_json()
    path = tmp_path / plan["rows"][0]["evaluation"]
    with pytest.raises(DataError, match=rf"{path}: missing. Run snakemake results/published.csv"):
        read_rows(plan, tmp_path)
    whole = evaluation_of(plan["rows"][0])
    write_json(path, {name: value for name, value in whole.items() if name != "ece"})
    with pytest.raises(DataError, match=rf"{path}: this evaluation has no ece"):
        read_rows(plan, tmp_path)
    path.write_text(json.dumps(whole)[:40])
    with pytest.raises(DataError, match=rf"{path}: half-written"):
        read_rows(plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top1": math.nan}, "top1 is nan"),
        ({"top1": None}, "top1 is None"),
        ({"top1": 8325.0}, "top1 is 8325"),
        ({"ece": math.inf}, "ece is inf"),
        ({"val_images": 0}, "val_images is 0"),
        ({"digest": "0123abcd"}, "of another configuration"),
    ],
    ids=["NaN", "null", "no percentage", "infinite", "no photographs", "other settings"],
)
def test_what_is_no_measurement_gets_no_verdict(
    raw_config: dict[str, Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    raw_config["select"]["published"] = ["lvvit_s"]
    plan = Study.plan(raw_config).published.as_json()
    path = tmp_path / plan["rows"][0]["evaluation"]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation_of(plan["rows"][0], **change)))
    with pytest.raises(DataError, match=rf"{path}: .*{says}"):
        read_rows(plan, tmp_path)
