"""Tables of segmentation: means, paired gains, differences to the paper where there may be one, and evaluations that are none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.errors import DataError
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.study import Study
from tokenlabel.eval.segmentation_figure import draw_segmentation, segmentation_figure
from tokenlabel.eval.segmentation_table import as_csv, as_markdown, collect_segmentation
from tokenlabel.eval.status import gather
from tokenlabel.eval.style import styled

from .test_figures import assert_text_on_page

Raw = dict[str, Any]


def finish(base: Path, row: Raw, seed: int, miou: float, /, **changes: Any) -> Path:
    """Leaves the evaluation of one seed of a row; multi-scale is one point above."""
    path = base / row["seeds"][str(seed)]
    document = {
        "digest": path.stem.removeprefix("evaluation-"), "run": row["run"].rsplit("-", 1)[-1], "seed": seed,
        "single": {"miou": miou, "pixel_accuracy": 80.0}, "multi": {"miou": miou + 1, "pixel_accuracy": 81.0},
        "images": 2000, "skipped": 0, "parameters_m": 30.2, "classes": [],
    }  # fmt: skip
    write_json(path, document | changes)
    return path


@pytest.fixture
def study(raw_config: Raw) -> Study:
    raw_config["segmentation"]["experiments"]["segmentation"]["seeds"] = [0, 1, 2]
    raw_config["select"] |= {
        "annotators": ["nfnet_f6"],
        "experiments": ["ablation_residual"],
        "segmentation": ["segmentation"],
    }
    return Study.plan(raw_config)


@pytest.fixture
def table(study: Study) -> Raw:
    return study.segmentation_tables["segmentation"].as_json()


def fill(base: Path, table: Raw) -> None:
    """Three seeds of FCN on hard labels, two of token labels."""
    hard, token = table["rows"][:2]
    for seed, miou in enumerate((46.0, 46.2, 46.4)):
        finish(base, hard, seed, miou)
    for seed, miou in enumerate((47.0, 47.6)):
        finish(base, token, seed, miou)


def test_a_gain_is_of_paired_seeds(table: Raw, tmp_path: Path) -> None:
    fill(tmp_path, table)
    rows = {
        row["name"]: row
        for row in csv.DictReader(io.StringIO(as_csv(collect_segmentation(table, tmp_path, complete=False))))
    }
    hard, token = rows["lvvit_s_fcn_hard"], rows["lvvit_s_fcn_token"]
    assert (hard["state"], token["state"], rows["lvvit_m_upernet"]["state"]) == ("done", "partial", "planned")
    assert (hard["miou_ss_mean"], hard["miou_ss_sd"], hard["paper_miou_ss"], hard["difference_miou_ss"]) == (
        "46.20", "0.20", "46.10", "0.10",
    )  # fmt: skip
    assert (token["gain_seeds"], token["gain_miou_ss_mean"], token["gain_miou_ss_sd"]) == ("2", "1.20", "0.28")
    assert (hard["against"], hard["gain_seeds"], hard["gain_miou_ss_mean"]) == ("", "", "")
    assert rows["Swin-B + UperNet"]["paper_miou_ms"] == "49.70"
    assert rows["Swin-B + UperNet"]["state"] == "paper"


def test_page_and_figure_hold_ours_and_the_papers(table: Raw, tmp_path: Path) -> None:
    fill(tmp_path, table)
    rows = collect_segmentation(table, tmp_path, complete=False)
    page = as_markdown(table, rows)
    assert "46.20 ± 0.20" in page
    assert "+1.20 ± 0.28" in page
    assert "| Swin-S + UperNet" in page
    with styled():
        figure, marks = segmentation_figure(table, rows)
        assert_text_on_page(figure)
    ours = {(mark.name, mark.series): mark for mark in marks if mark.kind == "ours"}
    assert ours["lvvit_s_fcn_hard", "single scale"].miou == pytest.approx(46.2)
    assert ours["lvvit_l_upernet", "multi-scale"].miou is None
    draw_segmentation(table, rows, tmp_path / "figure.png")
    drawn = list(csv.DictReader(io.StringIO((tmp_path / "figure.csv").read_text(encoding="utf-8"))))
    assert len(drawn) == len(marks)
    assert sum(line["kind"] == "other" for line in drawn) == 10


def test_a_capped_row_and_other_scenes_have_no_difference(raw_config: Raw, tmp_path: Path) -> None:
    for change in ("caps", "dataset"):
        raw = raw_config | {"segmentation": dict(raw_config["segmentation"])}
        if change == "caps":
            raw["caps"] = raw["caps"] | {"iterations": 8000}
        else:
            raw["segmentation"]["dataset"] = raw["segmentation"]["dataset"] | {"name": "others"}
        table = Study.plan(raw).segmentation_tables["segmentation"].as_json()
        finish(tmp_path / change, table["rows"][0], 0, 46.0)
        rows = collect_segmentation(table, tmp_path / change, complete=False)
        assert (rows[0].miou_ss_mean, rows[0].paper_miou_ss, rows[0].difference_miou_ss) == (46.0, 46.1, None)
        said = (
            "Capped, so another experiment" if change == "caps" else "The paper's numbers are of ADE20K, ours of others"
        )
        assert said in as_markdown(table, rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digest": "00000000"}, "digest is"),
        ({"run": "00000000"}, "run is"),
        ({"seed": 2}, "seed is 2, its place says 0"),
        (
            {"single": {"miou": 101.0, "pixel_accuracy": 80.0}},
            "single.miou is 101.0; expected between 0 and 100 percent",
        ),
        ({"multi": {}}, "no multi.miou"),
        ({"parameters_m": float("nan")}, "parameters_m is nan, which is no measurement"),
        ({"parameters_m": "30"}, "parameters_m is '30'; expected a number above 0"),
        ({"images": 0}, "images is 0; expected a number above 0"),
        ({"multi": {"miou": float("nan"), "pixel_accuracy": 80.0}}, "multi.miou is nan, which is no measurement"),
        ({"classes": [{"iou": float("inf")}]}, "classes[0].iou is inf, which is no measurement"),
    ],
)
def test_what_is_no_evaluation_of_the_run_is_refused(table: Raw, tmp_path: Path, changes: Raw, said: str) -> None:
    path = finish(tmp_path, table["rows"][0], 0, 46.0, **changes)
    with pytest.raises(DataError) as caught:
        collect_segmentation(table, tmp_path, complete=False)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seconds": 61.0}, "train_seconds 60.0 is not that of the training beside it (61.0 in done.json)"),
        ({"digest": "00000000"}, "of the run '00000000', but its folder belongs to"),
        ({"seed": 1}, "of seed 1, but it lies in seed0"),
    ],
)
def test_an_evaluation_of_another_training_than_the_one_beside_it_is_refused(
    table: Raw, tmp_path: Path, changes: Raw, said: str
) -> None:
    """As after a training that was made anew: its evaluation waits for no marker's time, so nothing else would tell."""
    path = finish(tmp_path, table["rows"][0], 0, 46.0, train_seconds=60.0)
    marker = {"digest": table["rows"][0]["run"].rsplit("-", 1)[-1], "seed": 0, "seconds": 60.0}
    write_json(path.parent / "done.json", marker)
    assert collect_segmentation(table, tmp_path, complete=False)[0].seeds == 1
    write_json(path.parent / "done.json", marker | changes)
    with pytest.raises(DataError) as caught:
        collect_segmentation(table, tmp_path, complete=False)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["", '{"digest": "', "[]", "\xff"])
def test_a_half_written_evaluation_is_refused_by_name(table: Raw, tmp_path: Path, content: str) -> None:
    path = finish(tmp_path, table["rows"][0], 0, 46.0)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"evaluation-\w+\.json: .* Delete it and run snakemake again\."):
        collect_segmentation(table, tmp_path, complete=False)


def test_seeds_without_anything_to_measure_make_no_mean_and_no_gain(table: Raw, tmp_path: Path) -> None:
    fill(tmp_path, table)
    finish(tmp_path, table["rows"][1], 1, 47.6, single={"miou": None, "pixel_accuracy": None})
    token = collect_segmentation(table, tmp_path, complete=False)[1]
    assert (token.miou_ss_mean, token.gain_miou_ss_mean, token.gain_seeds) == (None, None, 2)
    assert token.gain_miou_ms_mean == pytest.approx(1.2)


def test_what_is_missing_or_of_other_scenes_is_named(table: Raw, tmp_path: Path) -> None:
    finish(tmp_path, table["rows"][0], 0, 46.0)
    with pytest.raises(DataError, match=r"seed1/evaluation-\w+\.json: this evaluation is missing"):
        collect_segmentation(table, tmp_path)
    finish(tmp_path, table["rows"][0], 1, 46.0, images=1999)
    with pytest.raises(DataError, match=r"images is 1999, and 2000 in"):
        collect_segmentation(table, tmp_path, complete=False)


def test_status_knows_trainings_evaluations_and_what_nothing_needs(study: Study, table: Raw, tmp_path: Path) -> None:
    run, seed = study.segmentation_tables["segmentation"].trainings[0]
    assert run.start is not None
    write_json(tmp_path / run.scenes.marker, {})
    marker = {"digest": run.name.rsplit("-", 1)[-1], "seed": seed}
    write_json(tmp_path / run.done(seed), marker)
    finish(tmp_path, table["rows"][0], seed, 46.0)
    write_json(tmp_path / "results/segmentation/lvvit_s-old-12345678/seed0/done.json", {})
    status = gather(tmp_path, study, "here", look_s=0.0)
    (found,) = [entry for entry in status.tables if entry.name == "segmentation"]
    assert (found.state, found.evaluated, found.evaluations) == ("partial", 1, 18)
    assert found.trainings == {"done": 1, "waiting": 29}  # 17 more, and 12 of the backbones
    waiting = next(job for job in status.jobs if job.name == f"{run.name} seed 1")
    assert (waiting.state, waiting.reason) == ("waiting", f"{run.start.name} seed 1")
    (unused,) = status.unreferenced
    assert (unused.folder, unused.why) == ("results/segmentation/lvvit_s-old-12345678", "of another configuration")
    assert not status.problems
    assert read_json(tmp_path / run.done(seed)) == marker
