"""Tables from what exists: nothing, one evaluation, a damaged one; no training is ever planned for them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tokenlabel.core.files import read_json, write_json

from .conftest import planned_jobs, run_snakemake

Overlay = dict[str, Any]
TABLE = "results/so_far/ablation_annotators.csv"


def rows_of(directory: Path) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader((directory / TABLE).read_text(encoding="utf-8").splitlines())}


def test_tables_so_far_follow_what_exists(overlay: Overlay, tmp_path: Path) -> None:
    # the plans of both lie in one folder, and the second is written once Snakemake has looked there
    finished = run_snakemake(tmp_path, "results/plan.csv", TABLE, "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert {name: (row["state"], row["top1_mean"]) for name, row in rows_of(tmp_path).items()} == {
        "hard_labels": ("planned", ""), "lite0": ("planned", ""),
    }  # fmt: skip
    assert planned_jobs(run_snakemake(tmp_path, "-n", TABLE, overlay=overlay)) == {}

    # one evaluation alone, without its training, its labels or the manifest: nothing of them is asked for
    (plan,) = (tmp_path / "results/tables").glob("ablation_annotators-so_far-*.json")
    place = next(tmp_path / row["seeds"]["0"] for row in read_json(plan)["rows"] if row["name"] == "hard_labels")
    result = {
        "digest": place.stem.removeprefix("evaluation-"), "top1": 12.5, "top5": 45.0, "val_images": 40, "parameters_m": 1.0,
        "gmacs": 0.1, "weights_sha256": "0" * 64,
    }  # fmt: skip
    write_json(place, result)
    assert planned_jobs(run_snakemake(tmp_path, "-n", TABLE, overlay=overlay)) == {"make_table_so_far": 1}
    finished = run_snakemake(tmp_path, TABLE, "results/so_far/index.csv", "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = rows_of(tmp_path)
    assert (rows["hard_labels"]["state"], rows["hard_labels"]["top1_mean"]) == ("done", "12.50")
    assert rows["hard_labels"]["difference"] == ""  # the demo's photographs are not ImageNet
    assert "epochs 30->2" in rows["hard_labels"]["capped"]
    assert rows["lite0"]["state"] == "planned"
    page = (tmp_path / TABLE).with_suffix(".md").read_text(encoding="utf-8")
    assert "Rows: 1 done, 1 planned." in page
    assert (tmp_path / "results/so_far/figures/ablation_annotators.png").stat().st_size > 5_000
    index = {
        row["table"]: row for row in csv.DictReader((tmp_path / "results/so_far/index.csv").read_text().splitlines())
    }
    assert len(index) == 11  # every table of the catalogue, whatever is selected
    counts = [
        index["ablation_annotators"][name] for name in ("rows", "done", "partial", "planned", "seeds", "seeds_planned")
    ]
    assert counts == ["2", "1", "0", "1", "1", "2"]
    assert index["main"]["planned"] == index["main"]["rows"] == "2"

    place.write_bytes(place.read_bytes()[:50])
    finished = run_snakemake(tmp_path, TABLE, "--cores", "1", overlay=overlay)
    assert finished.returncode != 0
    said = (tmp_path / "logs/so_far/ablation_annotators.log").read_text(encoding="utf-8") + finished.stderr
    assert f"{place.relative_to(tmp_path)}: half-written, or no JSON" in said


def test_a_configuration_without_the_papers_row_has_no_table_12(tmp_path: Path, overlay: Overlay) -> None:
    finished = run_snakemake(tmp_path, "-n", "results/comparison_cait.csv", overlay=overlay)
    assert finished.returncode != 0
    assert (
        "error: results/comparison_cait.csv: no row of any experiment says paper_row: 4/lvvit_m_384" in finished.stderr
    )
