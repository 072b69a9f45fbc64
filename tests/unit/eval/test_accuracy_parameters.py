"""Fig. 1: what exists beside what the paper prints, every label free of every other, the CSV as drawn."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from tokenlabel.cli import main
from tokenlabel.core.files import read_json, write_json
from tokenlabel.eval.accuracy_parameters import accuracy_figure, accuracy_points
from tokenlabel.eval.style import styled
from tokenlabel.eval.tables import ResultRow, collect_rows

from .test_figures import assert_text_on_page, measured_rows, planned_table

PARAMETERS_M = {"lvvit_t": 8.535, "lvvit_s": 26.152, "lvvit_m": 55.831, "lvvit_l": 150.12}


def main_rows(base: Path, table: dict[str, Any], missing: set[str]) -> list[ResultRow]:
    measured_rows(base, table, lambda row, seed: table["rows"][row]["name"] in missing)
    for row in table["rows"]:
        for path in row["seeds"].values():
            if (base / path).exists():
                write_json(base / path, read_json(base / path) | {"parameters_m": PARAMETERS_M[row["model"]]})
    return collect_rows(table, base, complete=False)


@pytest.mark.parametrize(
    "missing", [set(), {"lvvit_m_384"}, {"lvvit_t", "lvvit_s", "lvvit_s_384", "lvvit_m", "lvvit_m_384"}]
)
def test_labels_lie_on_no_label_and_no_mark(raw_config: dict[str, Any], tmp_path: Path, missing: set[str]) -> None:
    table = planned_table(raw_config, "main", seeds=[0, 1])
    rows = main_rows(tmp_path, table, missing)
    points = accuracy_points(rows)
    with styled():
        figure = accuracy_figure(table, rows, points)
        assert_text_on_page(figure)
        (axes,) = figure.axes
        notes = {
            text.get_text(): Annotation.get_window_extent(text) for text in axes.texts if isinstance(text, Annotation)
        }
        centres = axes.transData.transform([(point.at, point.accuracy) for point in points if point.shown])
    assert len(notes) == len({point.label for point in points}) == 22
    for (one, first), (other, second) in itertools.combinations(notes.items(), 2):
        assert not first.overlaps(second), f"{one} lies on {other}"
    for label, box in notes.items():
        assert not any(box.contains(*centre) for centre in centres), f"{label} lies on a mark"
        assert axes.bbox.contains(box.x0, box.y0), label
        assert axes.bbox.contains(box.x1, box.y1), label


def test_the_command_draws_what_exists_and_writes_what_it_drew(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = planned_table(raw_config, "main", seeds=[0, 1])
    rows = main_rows(tmp_path, table, {"lvvit_m_384", "lvvit_s"})
    write_json(tmp_path / "plan.json", table)
    monkeypatch.chdir(tmp_path)
    assert main(["table", "accuracy", "--spec", "plan.json", "--figure", "f.png"]) == 0
    assert (tmp_path / "f.png").stat().st_size > 20_000
    lines = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    ours = {line["label"]: line for line in lines if line["kind"] == "ours"}
    assert ours.keys() == {"LV-ViT-T", "LV-ViT-S@384", "LV-ViT-M"}  # L has more than 100 M, the others are planned
    measured = {row.name: row for row in rows}
    assert float(ours["LV-ViT-M"]["y"]) == measured["lvvit_m"].top1_mean
    assert (ours["LV-ViT-M"]["x"], ours["LV-ViT-M"]["error"]) == ("55.831", str(measured["lvvit_m"].top1_sd))
    papers = {line["label"]: (line["x"], line["y"], line["series"]) for line in lines if line["kind"] != "ours"}
    assert papers["LV-ViT-S@384"] == ("26.0", "84.4", "LV-ViT, paper")
    assert papers["LV-ViT-T"] == ("8.5", "79.1", "LV-ViT, paper")
    assert papers["DeiT-B@384"] == ("86.0", "83.1", "other transformers, paper")
    assert papers["EfficientNet-B7@600"] == ("66.0", "84.3", "CNNs, paper")
    assert not {"CaiT-M36", "NFNet-F3@416", "ViT-L/16@384"} & papers.keys()  # larger
    assert all(float(line["x"]) < 100 for line in lines)


def test_every_mark_is_drawn_once_where_the_csv_says(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "main", seeds=[0])
    rows = main_rows(tmp_path, table, {"lvvit_t"})
    points = accuracy_points(rows)
    with styled():
        figure = accuracy_figure(table, rows, points)
    drawn = [tuple(np.round(spot, 6)) for marks in figure.axes[0].collections for spot in np.array(marks.get_offsets())]
    assert sorted(drawn) == sorted((round(point.at, 6), round(point.accuracy, 6)) for point in points)
    notes = " ".join(figure.texts[1].get_text().split())
    assert "Planned: LV-ViT-T." in notes
    assert (
        "100 M parameters or more: LV-ViT-L 288, LV-ViT-L 288 ↑448, LV-ViT-L 288 ↑448 ↑512, LV-ViT-L 448, LV-ViT-L 448 ↑512."
        in notes
    )


def test_another_data_set_has_none_of_the_papers_numbers_beside_it(raw_config: dict[str, Any], tmp_path: Path) -> None:
    for row in raw_config["experiments"]["main"]["rows"]:
        row.pop("paper_top1", None)
        row.pop("paper_row", None)
    table = planned_table(raw_config, "main", seeds=[0])
    for missing in (set(), {row["name"] for row in table["rows"]}):
        rows = main_rows(tmp_path / str(len(missing)), table, missing)
        points = accuracy_points(rows)
        assert {point.kind for point in points} == ({"ours"} if not missing else set())
        with styled():
            figure = accuracy_figure(table, rows, points)
            assert_text_on_page(figure)
        assert "paper" not in figure.texts[0].get_text()
