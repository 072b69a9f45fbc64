"""`snakemake first_light`: every rule once in folders of its own, and what its seconds say of the study."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made_once
from tests.scenes import add_segmentation, write_scenes
from tests.workflow.conftest import planned_jobs, run_snakemake
from tokenlabel.core.files import read_json

RULES = [
    "make_manifest", "evaluate_annotator", "annotate_shard", "measure_fidelity", "train_run", "evaluate_run",
    "make_scene_manifest", "train_segmentation", "evaluate_segmentation",
    "make_table", "draw_curves", "make_plan", "make_report_pages", "make_report", "make_fidelity_table", "draw_label_maps",
    "make_segmentation_table",
]  # fmt: skip


LOCAL = {"first_light", "make_light_summary", "make_plan", "make_report_pages", "make_report"}


@pytest.fixture
def overlay(overlay: dict[str, Any]) -> dict[str, Any]:
    """The small study's overlay with a table of segmentation on the main run's backbone; scenes lie beside the results."""
    add_segmentation(overlay, "scenes")
    del overlay["segmentation"]["experiments"]["transfer"]["set"]["train.supervision"]
    return overlay


@pytest.fixture
def lit(overlay: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a first light that ran to its end."""

    def make(directory: Path) -> None:
        write_scenes(directory / "scenes", train=8, val=4)
        finished = run_snakemake(directory, "first_light", "--cores", "2", overlay=overlay)
        assert finished.returncode == 0, finished.stderr[-5000:]

    return made_once(tmp_path_factory, "first_light", make)


def test_it_runs_every_rule_and_leaves_the_study_to_do(lit: Path, overlay: dict[str, Any]) -> None:
    with (lit / "results" / "first_light.csv").open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert list(rows) == RULES
    assert rows["train_run"]["jobs"] == "2"  # a training and its fine-tuning; the segmenter starts from one of them
    assert int(rows["annotate_shard"]["study_jobs"]) == 2
    assert (rows["train_segmentation"]["jobs"], rows["train_segmentation"]["study_jobs"]) == ("1", "2")
    (segmenter,) = csv.DictReader((lit / "results" / "first_light" / "segmentation.csv").read_text().splitlines())
    assert (segmenter["state"], segmenter["label"]) == ("done", "one training for segmentation")
    for row in rows.values():
        assert float(row["seconds"]) > 0
        assert float(row["study_gpu_hours"]) >= 0
    for rule in ("annotate_shard", "train_run", "evaluate_run", "measure_fidelity", "train_segmentation"):
        row = rows[rule]
        assert float(row["ratio"]) == pytest.approx(float(row["seconds"]) / float(row["estimated_seconds"]), rel=1e-3)
        assert float(row["study_gpu_hours"]) == pytest.approx(
            float(row["ratio"]) * float(row["study_estimated_gpu_hours"]), rel=1e-2
        )
    assert float(rows["annotate_shard"]["study_gb"]) > 0
    shown = planned_jobs(run_snakemake(lit, "-n", "all", overlay=overlay))
    # nothing but the annotator's labels of the same photographs could be shared, and the first light has one shard of them
    assert shown["make_manifest"] == 1
    assert shown["annotate_shard"] == 2
    assert shown["train_run"] == 3


def test_its_seconds_correct_the_plan(lit: Path) -> None:
    plan = read_json(lit / "results" / "tables" / "plan.json")
    assert plan["corrections"] == []  # it was priced before
    with (lit / "results" / "first_light.csv").open() as file:
        measured = {row["rule"]: float(row["ratio"]) for row in csv.DictReader(file) if row["ratio"]}
    from tokenlabel.core.first_light import finished_first_light
    from tokenlabel.core.overlays import read_configuration, study_files
    from tokenlabel.core.plan import plan_study
    from tokenlabel.core.study import Study

    raw = read_configuration(study_files([lit / "study.yaml"]))
    study = Study.plan(raw)
    light = finished_first_light(raw, study, lit)
    assert light is not None
    corrections = {found.kind: found for found in plan_study(study, lit, light).corrections}
    assert corrections["label lite0"].ratio == pytest.approx(measured["annotate_shard"], rel=1e-3)
    assert plan_study(study, lit).corrections == ()
    assert finished_first_light(raw, study, lit / "nowhere") is None


def test_finished_it_has_nothing_to_do(lit: Path, overlay: dict[str, Any]) -> None:
    left = set(planned_jobs(run_snakemake(lit, "-n", "first_light", overlay=overlay)))
    assert left <= LOCAL  # the plan knows more now, and the report may show it


def test_legs_adapted_annotators_and_studies_without_labels(overlay: dict[str, Any], tmp_path: Path) -> None:
    overlay["machine"]["leg_epochs"] = 1
    overlay["annotators"]["own"] = {"base": "lite0", "adapt": "probe", "folds": 2}
    overlay["select"]["annotators"] = ["own"]
    overlay["defaults"]["annotator"] = "own"
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "first_light", overlay=overlay))
    every = {
        "make_manifest": 1, "adapt_annotator": 1, "annotate_shard": 1, "evaluate_annotator": 1, "measure_fidelity": 1,
        "train_leg": 2, "train_run": 2, "evaluate_run": 2,
        "make_scene_manifest": 1, "train_segmentation_leg": 1, "train_segmentation": 1, "evaluate_segmentation": 1,
    }  # fmt: skip
    assert {rule: jobs[rule] for rule in every} == every
    overlay["select"] |= {"annotators": [], "experiments": ["main"], "segmentation": []}
    overlay["recipes"]["demo"]["supervision"] = overlay["recipes"]["demo_finetune"]["supervision"] = "hard"
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "first_light", overlay=overlay))
    assert not {"annotate_shard", "measure_fidelity", "evaluate_annotator", "draw_light_maps"} & set(jobs)
    assert jobs["train_run"] == 2
