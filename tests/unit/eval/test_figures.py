"""Figures of tables: the CSV beside a figure is what it shows, planned and capped rows are told apart, all text is on the page."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from tokenlabel.core.files import write_json
from tokenlabel.core.study import Study
from tokenlabel.eval.charts import PLANNED, accuracy_limits
from tokenlabel.eval.figures import draw_table, notes_of, table_figure
from tokenlabel.eval.points import SIDEWAYS, Point, as_csv, kind_of_figure, points_of
from tokenlabel.eval.style import ORANGE, styled
from tokenlabel.eval.tables import ResultRow, collect_rows

KINDS = {
    "rows": "main",
    "path": "ablation_training_path",
    "bars": "ablation_variants",
    "participation": "ablation_participation",
    "annotators": "ablation_annotators",
}
ACCURACIES = {"efficientnet_b4": 83.0, "efficientnet_b5": 83.8, "efficientnet_b6": 84.1, "efficientnet_b7": 84.9}


def planned_table(raw: dict[str, Any], name: str, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    raw["experiments"][name]["seeds"] = list(seeds)
    for annotator, top1 in ACCURACIES.items():
        raw["annotators"][annotator] = {**raw["annotators"][annotator], "paper_top1": top1}
        raw["annotators"][annotator].pop("paper_row", None)
    return Study.plan(raw).tables[name].as_json()


def measured_rows(
    base: Path, table: dict[str, Any], missing: Callable[[int, int], bool] = lambda row, seed: False
) -> list[ResultRow]:
    """Rows of evaluations as they would be on ImageNet; `missing` says which row and seed has none."""
    draw = random.Random(0)
    for position, row in enumerate(table["rows"]):
        for seed, path in row["seeds"].items():
            top1 = (row["paper_top1"] or 82.5) + draw.uniform(-1.0, 0.5)
            if not missing(position, int(seed)):
                result = {
                    "digest": Path(path).stem.removeprefix("evaluation-"), "top1": top1, "top5": 96.0, "val_images": 50000,
                    "parameters_m": 26.152, "gmacs": 6.57, "weights": "model.safetensors",
                    "weights_sha256": hashlib.sha256(path.encode()).hexdigest(), "train_seconds": 1.0,
                }  # fmt: skip
                write_json(base / path, result)
    return collect_rows(table, base, complete=False)


@pytest.fixture
def style() -> Iterator[None]:
    with styled():
        yield


def drawn_marks(figure: Figure, *, sideways: bool) -> set[tuple[float, float]]:
    """Place and accuracy of every mark and bar that can be seen."""
    found = set()
    for axes in figure.axes:
        for marks in axes.collections:
            if marks.get_label().split(",")[0] in ("ours", "paper", "other"):
                found |= {
                    tuple(np.round(spot[::-1] if sideways else spot, 6)) for spot in np.array(marks.get_offsets())
                }
        for bar in bars_of(axes):
            found.add((round(bar.get_x() + bar.get_width() / 2, 6), round(bar.get_y() + bar.get_height(), 6)))
        for line in axes.get_lines():
            if line.get_marker() == "D":
                found.add((round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6)))
    return found


def bars_of(axes: Axes) -> list[Rectangle]:
    return [bar for container in axes.containers if isinstance(container, BarContainer) for bar in container.patches]


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def assert_text_on_page(figure: Figure) -> None:
    """All that is drawn: what the layout knows of, and labels that were placed after it."""
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    boxes = {"everything": figure.get_tightbbox()}
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        boxes[text.get_text()] = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    for said, box in boxes.items():
        inside = box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01
        assert inside, f"{said!r} at {box.extents} leaves the page of {width} x {height} inches"


@pytest.mark.usefixtures("style")
@pytest.mark.parametrize("kind", KINDS)
def test_the_csv_is_what_is_drawn(raw_config: dict[str, Any], tmp_path: Path, kind: str) -> None:
    table = planned_table(raw_config, KINDS[kind])
    rows = measured_rows(tmp_path, table, lambda row, seed: row in (1, 4))
    assert kind_of_figure(table, rows) == kind
    figure, points = table_figure(table, rows)
    lines = list(csv.DictReader(io.StringIO(as_csv(points, sideways=kind in SIDEWAYS))))
    place, accuracy = ("y", "x") if kind in SIDEWAYS else ("x", "y")
    written = {
        (round(float(line[place]), 6), round(float(line[accuracy]), 6))
        for line in lines
        if line[accuracy] and line[place]
    }
    unplaced = {round(float(line[accuracy]), 6) for line in lines if line[accuracy] and not line[place]}
    drawn = drawn_marks(figure, sideways=kind in SIDEWAYS)
    assert written <= drawn
    if kind == "annotators":  # in the panel of those whose accuracy is not given, or as a line across
        across = {round(float(line.get_ydata()[0]), 6) for axes in figure.axes for line in axes.get_lines()}
        assert unplaced <= {top1 for _, top1 in drawn} | across
        assert {top1 for _, top1 in drawn - written} <= unplaced
    else:
        assert drawn == written
    assert [line["state"] for line in lines if line["kind"] == "ours"] == [row.state for row in rows]
    by_name = {row.name: row for row in rows}
    for line in lines:
        row = by_name[line["name"]]
        expected = row.top1_mean if line["kind"] == "ours" else row.paper_top1
        assert (float(line[accuracy]) if line[accuracy] else None) == expected
        if line["kind"] == "ours":
            assert (float(line["error"]) if line["error"] else None) == row.top1_sd


@pytest.mark.usefixtures("style")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["none", "some", "all"])
def test_planned_places_are_named_and_all_text_is_on_the_page(
    raw_config: dict[str, Any], tmp_path: Path, kind: str, missing: str
) -> None:
    table = planned_table(raw_config, KINDS[kind])
    left_out = {"none": lambda row, seed: False, "some": lambda row, seed: row in (1, 4), "all": lambda row, seed: True}
    rows = measured_rows(tmp_path, table, left_out[missing])
    figure, _ = table_figure(table, rows)
    assert_text_on_page(figure)
    said = [text.get_text() for text in texts_of(figure)]
    planned = sum(PLANNED in text for text in said)
    if missing == "none":
        assert not planned
    elif kind in ("rows", "path", "bars"):
        assert planned == sum(row.state == "planned" for row in rows)
    else:
        assert planned >= 1
    assert any("Nothing is measured yet" in text for text in said) == (missing == "all")
    assert any("50,000 validation photographs" in text for text in said) == (missing != "all")


@pytest.mark.usefixtures("style")
@pytest.mark.parametrize("kind", KINDS)
def test_capped_rows_are_grey_or_hatched_and_named(raw_config: dict[str, Any], tmp_path: Path, kind: str) -> None:
    raw_config["caps"] |= {"epochs": 40, "batch_size": 256, "images": 1000}
    table = planned_table(raw_config, KINDS[kind])
    rows = measured_rows(tmp_path, table)
    figure, points = table_figure(table, rows)
    assert {bool(point.capped) for point in points if point.kind == "ours"} == {True}
    labels = {marks.get_label() for axes in figure.axes for marks in axes.collections}
    assert "ours" not in labels
    bars = [bar for axes in figure.axes for bar in bars_of(axes)]
    assert ("ours, capped" in labels) != bool(kind == "bars")
    assert all(bar.get_hatch() for bar in bars)
    note = " ".join(" ".join(text.get_text() for text in texts_of(figure)).split())
    for cap in {row.capped for row in rows}:
        assert f"Grey: capped, not comparable with the paper: {cap} (" in note
    assert "images 1281167->1000" in note
    assert_text_on_page(figure)


@pytest.mark.usefixtures("style")
def test_error_bars_need_two_seeds(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "main")
    rows = measured_rows(tmp_path, table, lambda row, seed: row == 2 and seed > 0)
    figure, points = table_figure(table, rows)
    ours = [point for point in points if point.kind == "ours"]
    assert [point.error is None for point in ours] == [position == 2 for position in range(len(ours))]
    (axes,) = figure.axes
    segments = [bar for container in axes.containers for bar in container.lines[2][0].get_segments()]
    assert len(segments) == len(ours) - 1
    for segment, point in zip(segments, [point for point in ours if point.error is not None], strict=True):
        assert segment[1][0] - segment[0][0] == pytest.approx(2 * (point.error or 0))
    assert any("(1 of 3 seeds)" in text.get_text() for text in texts_of(figure))


@pytest.mark.usefixtures("style")
def test_areas_are_proportional_to_the_annotators_parameters(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "ablation_annotators")
    figure, points = table_figure(table, measured_rows(tmp_path, table))
    sizes = {round(point.accuracy, 6): point.size for point in points if point.kind == "ours" and point.size}
    ratios = []
    for axes in figure.axes:
        for marks in axes.collections:
            if marks.get_label() == "ours":
                for (_, top1), area in zip(marks.get_offsets(), marks.get_sizes(), strict=True):
                    ratios.append(area / sizes[round(float(top1), 6)])
    assert len(ratios) == 9
    assert max(ratios) == pytest.approx(min(ratios))


def test_bars_say_that_their_axis_does_not_start_at_zero(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "ablation_variants")
    rows = measured_rows(tmp_path, table)
    with styled():
        figure, _ = table_figure(table, rows)
    axes = figure.axes[0]
    foot = axes.get_ylim()[0]
    assert foot > 0
    assert f"from {foot:g} on, not from 0" in axes.get_ylabel()
    assert {bar.get_y() for bar in bars_of(axes)} == {foot}
    values = {text.get_text() for text in axes.texts}
    assert {f"{row.top1:.1f}" for row in rows} <= values


def test_the_path_writes_what_was_gained_over_the_first_row(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "ablation_training_path", seeds=[0])
    rows = measured_rows(tmp_path, table, lambda row, seed: row == 3)
    with styled():
        figure, _ = table_figure(table, rows)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert f"{rows[6].top1:.1f} ({rows[6].top1 - rows[0].top1:+.1f})" in said
    assert "84.4 (+4.5)" in said  # as Table 8 prints it
    assert f"{rows[0].top1:.1f}" in said


def test_nothing_is_gained_over_a_first_row_that_was_capped(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "ablation_training_path", seeds=[0])
    first, *others = measured_rows(tmp_path, table)
    with styled():
        figure, _ = table_figure(table, [replace(first, capped="epochs 300->3"), *others])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert f"{others[5].top1:.1f}" in said  # and no gain behind it
    assert "84.4 (+4.5)" in said


@pytest.mark.parametrize(
    ("top1", "photographs", "says"),
    [(80.0, 50000, "±0.18 points"), (100.0, 40, "±3.14 points"), (0.0, 40, "±3.14 points"), (50.0, 40, "±7.54 points")],
)
def test_an_accuracy_of_few_photographs_is_never_certain(
    raw_config: dict[str, Any], tmp_path: Path, top1: float, photographs: int, says: str
) -> None:
    row = measured_rows(tmp_path, planned_table(raw_config, "main"))[0]
    assert says in notes_of([replace(row, top1_mean=top1, val_images=photographs)])[0]


@pytest.mark.parametrize(
    ("experiment", "figure", "message"),
    [
        ("main", "annotators", "no annotator's own accuracy is given"),
        ("main", "participation", "the rows do not differ in participation"),
        ("ablation_supervision", "bars", "no two models share a setting"),
    ],
)
def test_a_kind_that_does_not_fit_lists_the_rows_and_says_why(
    raw_config: dict[str, Any], tmp_path: Path, experiment: str, figure: str, message: str
) -> None:
    raw_config["experiments"][experiment]["figure"] = figure
    for annotator in raw_config["annotators"].values():
        annotator.pop("paper_row", None)
        annotator["paper_top1"] = None
    table = Study.plan(raw_config).tables[experiment].as_json()
    rows = measured_rows(tmp_path, table)
    assert kind_of_figure(table, rows) == "rows"
    with styled():
        drawn, _ = table_figure(table, rows)
    assert any(message in text.get_text() for text in texts_of(drawn))


HARD_LABELS = [
    "$a_b$ costs 50 % & 3$",
    "_starts with an underscore",
    "猫と犬 のラベル",
    "метки токенов ↑384 ± β",
    "a label that is much longer than any name of a setting ought to be, with a-word-that-cannot-be-broken-anywhere-at-all-in-it",
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 40])
def test_one_row_and_forty_and_labels_of_all_kinds(
    raw_config: dict[str, Any], tmp_path: Path, kind: str, count: int
) -> None:
    raw_config["experiments"]["main"] = {
        "question": "Does $x_1$ help? " + "A long question has more than one line. " * 6,
        "paper": "none (ours)",
        "seeds": [0, 1],
        "figure": kind,
        "rows": [
            {
                "name": f"row_{number}",
                "label": HARD_LABELS[number % len(HARD_LABELS)] + f" {number}",
                "set": {
                    "model": ["lvvit_t", "lvvit_s", "lvvit_m", "deit_s"][number % 4],
                    "train.participation": 0.02 * (number + 1),
                    "annotator": list(raw_config["annotators"])[number % 9],
                    "train.weight_decay": 0.01 * (1 + number // 4),
                },
            }
            for number in range(count)
        ],
    }
    table = planned_table(raw_config, "main", seeds=[0, 1])
    rows = measured_rows(tmp_path, table, lambda row, seed: row % 3 == 1)
    with styled():
        figure, points = table_figure(table, rows)
        assert_text_on_page(figure)
        names = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    if kind in SIDEWAYS:
        assert len(names) == count
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(names))
    said = " ".join(text.get_text() for text in texts_of(figure))
    assert "Does $x_1$ help?" in said
    assert not any(text.get_parse_math() for text in texts_of(figure))
    assert len([point for point in points if point.kind == "ours"]) == count
    draw_table(table, rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size[0] == 1280  # 6.4 inches, whatever is drawn
    assert len((tmp_path / "figure.csv").read_text().splitlines()) == 1 + len(points)


def test_the_papers_marks_are_hollow_and_lie_above_ours(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = planned_table(raw_config, "ablation_residual")
    with styled():
        figure, _ = table_figure(table, measured_rows(tmp_path, table))
    marks = {one.get_label(): one for one in figure.axes[0].collections}
    assert len(marks["paper"].get_facecolor()) == 0
    assert marks["paper"].get_zorder() > marks["ours"].get_zorder()
    with styled():
        figure.savefig(tmp_path / "shown.png")
    pixels = np.array(Image.open(tmp_path / "shown.png").convert("RGB")).reshape(-1, 3)
    wanted = [int(ORANGE[start : start + 2], 16) for start in (1, 3, 5)]
    assert (pixels == wanted).all(1).sum() > 50


def test_limits_hold_all_marks_and_stay_within_what_an_accuracy_can_be() -> None:
    def point(top1: float | None, error: float | None = None) -> Point:
        return Point("a", "a", "ours", "ours", 0.0, top1, error)

    assert accuracy_limits([]) == accuracy_limits([point(None)]) == (0.0, 100.0)
    low, high = accuracy_limits([point(80.0, 3.0), point(81.0)])
    assert low < 77
    assert high > 83
    assert accuracy_limits([point(0.0), point(100.0)]) == (-2.0, 102.0)


def test_a_series_that_no_two_rows_share_is_told_apart_by_its_label(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["main"] = {
        "question": "q", "paper": "none", "seeds": [0], "figure": "bars",
        "rows": [
            {
                "name": f"{model}_{decay}".replace(".", "_"), "label": f"decay {decay}",
                "set": {"model": model, "train.weight_decay": decay},
            }
            for model in ("lvvit_t", "lvvit_s") for decay in (0.05, 0.1)
        ],
    }  # fmt: skip
    table = Study.plan(raw_config).tables["main"].as_json()
    points = points_of(table, measured_rows(tmp_path, table), "bars")
    assert [point.series for point in points] == ["weight decay 0.05", "weight decay 0.1"] * 2
    assert [point.at for point in points] == pytest.approx([-0.2, 0.2, 0.8, 1.2])
