"""Training curves: every epoch of every run in the CSV, what is missing left out, capped runs marked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.errors import DataError
from tokenlabel.core.files import write_json
from tokenlabel.core.study import Study
from tokenlabel.engine.reporting import MetricsFile
from tokenlabel.eval.curves import Curve, as_csv, collect_curves, curves_figure, draw_curves
from tokenlabel.eval.style import COLOURS, styled

from .test_figures import assert_text_on_page


def plan(raw_config: dict[str, Any], name: str, **caps: int) -> dict[str, Any]:
    raw_config["caps"] |= caps
    raw_config["experiments"][name]["seeds"] = [0, 1]
    return Study.plan(raw_config).tables[name].as_json()


def write_metrics(base: Path, table: dict[str, Any], rows: slice = slice(None), epochs: int = 4) -> None:
    """As trainings leave them: step lines between the epochs, a validation every second epoch."""
    for place, row in enumerate(table["rows"][rows]):
        for seed, evaluation in row["seeds"].items():
            folder = (base / evaluation).parent
            folder.mkdir(parents=True)
            file = MetricsFile(folder / "metrics.jsonl")
            for epoch in range(epochs):
                file.append({"epoch": epoch, "step": 1, "loss": 99.0})
                loss = 7.0 - epoch - place / 3 - int(seed) / 10
                line = {
                    "epoch": epoch,
                    "steps": 2,
                    "learning_rate": 1e-3 / (epoch + 1),
                    "loss": loss,
                    "class_loss": loss / 2,
                }
                line |= {"token_loss": loss / 2} if place else {}
                line |= {"top1": 10.0 * epoch + place} if epoch % 2 else {}
                file.append(line)


def test_the_csv_has_every_epoch_of_every_run_and_no_step(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = plan(raw_config, "ablation_supervision")
    write_metrics(tmp_path, table)
    lines = list(csv.DictReader(io.StringIO(as_csv(table, collect_curves(table, tmp_path)))))
    assert len(lines) == len(table["rows"]) * 2 * 4
    third = lines[8 + 4 + 1]  # second row, seed 1, epoch 1
    assert (third["name"], third["seed"], third["epoch"]) == (table["rows"][1]["name"], "1", "1")
    assert float(third["class_loss"]) == pytest.approx((7 - 1 - 1 / 3 - 0.1) / 2)
    assert (third["top1"], third["top5"]) == ("11.0", "")
    assert lines[0]["token_loss"] == ""  # of hard labels


def test_runs_that_are_missing_are_left_out_and_none_at_all_is_an_error(
    raw_config: dict[str, Any], tmp_path: Path
) -> None:
    table = plan(raw_config, "ablation_residual")
    with pytest.raises(DataError, match=r"ablation_residual: none of its 3 runs has a metrics\.jsonl"):
        collect_curves(table, tmp_path)
    write_metrics(tmp_path, table, slice(1, 2))
    assert [(curve.row, curve.seed) for curve in collect_curves(table, tmp_path)] == [("scale_2", 0), ("scale_2", 1)]


def exchange(found: str, other: str) -> Callable[[Path], Any]:
    """Changes the text of metrics.jsonl."""

    def apply(path: Path) -> None:
        text = path.read_text()
        assert found in text
        path.write_text(text.replace(found, other, 1))

    return apply


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (exchange('{"epoch": 1, "steps"', '{"epoch": 0, "steps"'), "epoch 0 stands where epoch 1 should be"),
        (exchange('{"epoch": 1, "steps"', '{"epoch": 1, "steps" '), None),  # the same in other words
        (exchange('{"epoch": 1, "steps"', '{"epoch" 1, "steps"'), "epoch 2 stands where epoch 1 should be"),
        (exchange('"top1": 11.0', '"top1": NaN'), "top1 of epoch 1 is no number"),
        (exchange('"top1": 11.0', '"top1": "11"'), "is no line of a training"),
        (lambda path: path.with_name("summary.json").write_text('{"epochs": 300}'), "its epochs are not those of summary.json"),
        (lambda path: path.with_name("summary.json").write_text("{"), "summary.json: cannot be read"),
    ],
    ids=["doubled epoch", "sound", "damaged line", "NaN", "words", "of another training", "torn summary"],
)  # fmt: skip
def test_metrics_that_are_not_what_the_training_wrote_are_refused_by_name(
    raw_config: dict[str, Any], tmp_path: Path, spoil: Callable[[Path], Any], said: str | None
) -> None:
    table = plan(raw_config, "ablation_residual")
    write_metrics(tmp_path, table)
    path = (tmp_path / table["rows"][1]["seeds"]["1"]).parent / "metrics.jsonl"
    spoil(path)
    if said is None:
        assert len(collect_curves(table, tmp_path)) == 6
        return
    with pytest.raises(DataError, match=said) as caught:
        collect_curves(table, tmp_path)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_figure_shows_each_run_in_a_colour_of_its_own(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = plan(raw_config, "ablation_supervision", epochs=4)
    write_metrics(tmp_path, table)
    curves = collect_curves(table, tmp_path)
    assert all(curve.capped == "epochs 300->4" for curve in curves)
    draw_curves(table, curves, tmp_path / "whole.png")
    draw_curves(table, [curve for curve in curves if curve.row != table["rows"][-1]["name"]], tmp_path / "less.png")
    shown = {}
    for file in ("whole.png", "less.png"):
        with Image.open(tmp_path / file) as image:
            shown[file] = np.array(image.convert("RGB")).reshape(-1, 3)
    colour = tuple(int(COLOURS[(len(table["rows"]) - 1) % len(COLOURS)][place : place + 2], 16) for place in (1, 3, 5))
    own = {file: int((pixels == colour).all(1).sum()) for file, pixels in shown.items()}
    assert own["whole.png"] > own["less.png"]  # the last row's colour: its curves and its line in the legend


def test_the_command_writes_both_files(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = plan(raw_config, "ablation_residual")
    write_metrics(tmp_path, table)
    write_json(tmp_path / "plan.json", table)
    monkeypatch.chdir(tmp_path)
    assert main(["table", "curves", "--spec", "plan.json", "--csv", "c.csv", "--figure", "c.png"]) == 0
    assert (tmp_path / "c.csv").read_text().count("\n") == 1 + 3 * 2 * 4
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"


def test_segmenters_have_their_own_losses_and_measure(raw_config: dict[str, Any], tmp_path: Path) -> None:
    planned = Study.plan(raw_config).segmentation_tables["segmentation"]
    table = planned.as_json()
    assert planned.curves == ["results/figures/curves_segmentation.png"]
    with pytest.raises(
        DataError, match=r"segmentation: none of its 6 runs has a metrics\.jsonl under .*/results/segmentation\."
    ):
        collect_curves(table, tmp_path)
    for row in table["rows"][:2]:
        (evaluation,) = row["seeds"].values()
        (tmp_path / evaluation).parent.mkdir(parents=True)
        file = MetricsFile((tmp_path / evaluation).parent / "metrics.jsonl")
        for interval in range(3):
            file.append({"epoch": interval, "step": 1, "loss": 99.0})
            line = {
                "epoch": interval,
                "steps": 4000,
                "learning_rate": 1e-5,
                "loss": 2.0,
                "pixel_loss": 1.5 - interval / 4,
            }
            file.append(line | ({"miou": 40.0 + interval, "pixel_accuracy": 80.0} if interval else {}))
    curves = collect_curves(table, tmp_path)
    lines = list(csv.DictReader(io.StringIO(as_csv(table, curves))))
    assert [(line["pixel_loss"], line["miou"]) for line in lines] == [
        ("1.5", ""),
        ("1.25", "41.0"),
        ("1.0", "42.0"),
    ] * 2
    assert "top1" not in lines[0]
    with styled():
        figure = curves_figure(table, curves)
        assert_text_on_page(figure)
    loss, miou, rate = figure.axes[:3]
    assert [axes.get_title(loc="left") for axes in (loss, miou, rate)] == [
        "pixel loss (training)", "mean IoU (%, validation, single scale)", "learning rate",
    ]  # fmt: skip
    assert list(miou.get_lines()[0].get_xdata()) == [2, 3]
    assert rate.get_xlabel() == "intervals done"


def test_every_training_of_a_table_is_awaited_once_and_tables_without_one_have_no_curves(
    raw_config: dict[str, Any],
) -> None:
    table = Study.plan(raw_config).tables["ablation_annotators"]
    assert table.curves == ["results/figures/curves_ablation_annotators.png"]
    assert len(table.trainings) == len(set(table.trainings)) == 10
    assert all(marker.endswith("/seed0/done.json") for marker in table.trainings)


@pytest.mark.parametrize("rows", [1, 21])
def test_each_row_has_a_look_of_its_own_and_all_text_is_on_the_page(rows: int) -> None:
    table = {"name": "t", "question": "Does it train? " * 12, "paper": "none"}
    lines = [{"epoch": epoch, "class_loss": 7.0 - epoch, "learning_rate": 1e-3} for epoch in range(3)]
    label = "a row with a name that is rather long for a legend, number"
    curves = [Curve(f"r{row}", f"{label} {row}", "run", seed, "", lines) for row in range(rows) for seed in (0, 1)]
    with styled():
        figure = curves_figure(table, curves)
        assert_text_on_page(figure)
    losses, rates = figure.axes
    for axes, name in ((losses, "class_loss"), (rates, "learning_rate")):
        assert len(axes.get_lines()) == 2 * rows
        for line in axes.get_lines():
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [entry[name] for entry in lines]
    looks = {(line.get_color(), line.get_linestyle()) for line in losses.get_lines()}
    assert len(looks) == rows
    entries = figure.legends[0].get_lines()
    assert {(line.get_color(), line.get_linestyle()) for line in entries} == looks
