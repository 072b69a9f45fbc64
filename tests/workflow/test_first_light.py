"""`snakemake first_light`: every rule once in folders of its own, and what its seconds say of the study."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made_once
from tests.workflow.conftest import planned_jobs, run_snakemake
from tokenlabel.core.files import read_json

RULES = [
    "make_manifest", "evaluate_annotator", "annotate_shard", "measure_fidelity", "train_leg", "train_run", "evaluate_run",
    "make_table", "draw_curves", "make_plan", "make_report_pages", "make_report", "make_fidelity_table", "draw_label_maps",
]  # fmt: skip


@pytest.fixture
def legged(overlay: dict[str, Any]) -> dict[str, Any]:
    """The small study with four epochs in legs of two; its first light has two epochs in legs of one."""
    overlay["machine"]["leg_epochs"] = 2
    overlay["caps"]["epochs"] = 4
    return overlay


@pytest.fixture
def lit(legged: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a first light that ran to its end."""

    def make(directory: Path) -> None:
        finished = run_snakemake(directory, "first_light", "--cores", "2", overlay=legged)
        assert finished.returncode == 0, finished.stderr[-5000:]

    return made_once(tmp_path_factory, "first_light", make)


def test_it_runs_every_rule_and_leaves_the_study_to_do(lit: Path, legged: dict[str, Any]) -> None:
    with (lit / "results" / "first_light.csv").open() as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert list(rows) == RULES
    assert rows["train_run"]["jobs"] == "2"  # a training and its fine-tuning, the last leg of each
    assert rows["train_leg"]["jobs"] == "2"
    assert int(rows["annotate_shard"]["study_jobs"]) == 2
    for row in rows.values():
        assert float(row["seconds"]) > 0
        assert float(row["study_gpu_hours"]) >= 0
    for rule in ("annotate_shard", "train_run", "evaluate_run", "measure_fidelity"):
        row = rows[rule]
        assert float(row["ratio"]) == pytest.approx(float(row["seconds"]) / float(row["estimated_seconds"]), rel=1e-3)
        assert float(row["study_gpu_hours"]) == pytest.approx(
            float(row["ratio"]) * float(row["study_estimated_gpu_hours"]), rel=1e-2
        )
    assert float(rows["annotate_shard"]["study_gb"]) > 0
    shown = planned_jobs(run_snakemake(lit, "-n", "all", overlay=legged))
    # nothing but the annotator's labels of the same photographs could be shared, and the first light has one shard of them
    assert shown["make_manifest"] == 1
    assert shown["annotate_shard"] == 2
    assert shown["train_leg"] == 3
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


def test_finished_it_has_nothing_to_do(lit: Path, legged: dict[str, Any]) -> None:
    assert not set(planned_jobs(run_snakemake(lit, "-n", "first_light", overlay=legged))) & {
        "annotate_shard", "train_run", "train_leg", "evaluate_run", "make_manifest",
    }  # fmt: skip


def test_a_study_without_labels_has_one_too(overlay: dict[str, Any], tmp_path: Path) -> None:
    overlay["select"] = {"annotators": [], "experiments": ["main"]}
    overlay["recipes"]["demo"]["supervision"] = "hard"
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "first_light", overlay=overlay))
    assert "annotate_shard" not in jobs
    assert jobs["train_run"] == 1
    assert jobs["evaluate_run"] == 1
