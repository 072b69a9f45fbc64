"""Tables: ours beside the paper's, and capped rows without a difference."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenlabel.core.errors import DataError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.study import Study
from tokenlabel.eval.figures import draw_table
from tokenlabel.eval.tables import as_csv, collect_rows


def write_results(base: Path, table: dict[str, Any], top1: float = 80.0) -> None:
    for position, row in enumerate(table["rows"]):
        for seed, path in row["seeds"].items():
            write_json(
                base / path,
                {
                    "top1": top1 + position + int(seed), "top5": 95.0, "parameters_m": 26.152, "gmacs": 6.57,
                    "val_images": 50000, "train_seconds": 100.0,
                },
            )  # fmt: skip


def test_a_table_has_the_papers_numbers_and_the_difference(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["ablation_annotators"]["seeds"] = [0, 1]
    table = Study.plan(raw_config).tables["ablation_annotators"].as_json()
    write_results(tmp_path, table)
    rows = list(csv.DictReader(io.StringIO(as_csv(collect_rows(table, tmp_path)))))
    assert len(rows) == 10
    by_name = {row["name"]: row for row in rows}
    best = by_name["nfnet_f6"]
    assert best["annotator_top1"] == "86.30"
    assert best["paper_top1"] == "83.30"
    assert best["seeds"] == "2"
    assert best["top1_sd"] == "0.71"  # of x and x + 1
    assert float(best["difference"]) == pytest.approx(float(best["top1_mean"]) - 83.3, abs=0.011)
    assert by_name["efficientnet_b4"]["paper_top1"] == ""  # drawn in the figure, not printed
    assert by_name["efficientnet_b4"]["difference"] == ""
    assert by_name["hard_labels"]["annotator"] == ""


def test_a_capped_row_is_marked_and_has_no_difference(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["caps"]["epochs"] = 2
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    for row in collect_rows(table, tmp_path):
        assert row.capped == "epochs 300->2"
        assert row.paper_top1 is not None
        assert row.difference is None


def test_agreement_has_columns_where_all_seeds_measured_it(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["ablation_residual"]["seeds"] = [0, 1]
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    measured = {"class_top1": 70.0, "token_agreement": 60.0, "token_kl": 1.0}
    for seed, path in table["rows"][0]["seeds"].items():
        write_json(tmp_path / path, read_json(tmp_path / path) | measured | {"token_agreement": 60.0 + int(seed)})
    write_json(
        tmp_path / table["rows"][1]["seeds"]["0"], read_json(tmp_path / table["rows"][1]["seeds"]["0"]) | measured
    )
    first, second, _ = csv.DictReader(io.StringIO(as_csv(collect_rows(table, tmp_path))))
    assert [first[name] for name in ("class_top1_mean", "token_agreement_mean", "token_kl_mean")] == [
        "70.00", "60.50", "1.00"
    ]  # fmt: skip
    assert first["token_agreement_sd"] == "0.71"
    assert {second[name] for name in ("class_top1_mean", "token_agreement_mean", "token_agreement_sd")} == {""}


def test_a_missing_evaluation_is_named(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["main"].as_json()
    with pytest.raises(DataError, match=r"evaluation-.*json: this evaluation is missing"):
        collect_rows(table, tmp_path)


@pytest.mark.parametrize("name", ["main", "ablation_annotators", "ablation_participation", "ablation_residual"])
def test_every_kind_of_figure_is_drawn(raw_config: dict[str, Any], tmp_path: Path, name: str) -> None:
    for annotator in raw_config["annotators"].values():
        annotator.setdefault("paper_top1", 84.0)
    table = Study.plan(raw_config).tables[name].as_json()
    write_results(tmp_path, table, top1=75.0)
    draw_table(table, collect_rows(table, tmp_path), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20  # not an empty sheet
