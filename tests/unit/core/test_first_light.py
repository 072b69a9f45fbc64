"""What the first light of a study consists of: the study's own kinds of jobs, small, in folders of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.first_light import (
    light_results,
    light_segmentation,
    light_table,
    plan_first_light,
    rule_of,
    summary_document,
)
from tokenlabel.core.study import Study


def both(raw: dict[str, Any]) -> tuple[Study, Study]:
    before = copy.deepcopy(raw)
    study = Study.plan(raw)
    light = plan_first_light(raw, study)
    assert raw == before
    return study, light


def test_the_papers_study(raw_config: dict[str, Any]) -> None:
    study, light = both(raw_config)
    runs = {row.name: row.run for row in light_table(light).rows}
    assert list(runs) == ["run", "finetuned", "alone_nfnet_f6"]
    assert runs["finetuned"].start is runs["run"]
    assert (light.train_images, light.data.spec["shards"]) == (12812, 1)
    assert (runs["run"].epochs, runs["run"].spec["image_px"], runs["finetuned"].spec["image_px"]) == (1, 224, 384)
    assert not set(light.runs) & set(study.runs)
    assert not set(light.labels) & set(study.labels)
    assert light.data.name != study.data.name
    rules = {rule["rule"]: rule for rule in summary_document(study, light, {"make_plan": ("b.tsv", 1)})["rules"]}
    assert (len(rules["annotate_shard"]["jobs"]), rules["annotate_shard"]["study_jobs"]) == (1, 576)
    assert rules["train_run"]["study_estimate_gpu_s"] > 1000 * rules["train_run"]["jobs"][0]["estimate_s"]
    assert {rule_of(path) for path in light_results(light)} == {
        "evaluate_run", "evaluate_annotator", "annotate_shard", "measure_fidelity"
    }  # fmt: skip


def test_adapted_annotators_legs_and_hard_labels(raw_config: dict[str, Any]) -> None:
    raw_config["annotators"]["mine"] = {"base": "efficientnet_b3", "adapt": "probe", "folds": 5}
    raw_config["select"]["annotators"].append("mine")
    raw_config["machine"]["leg_epochs"] = 100
    study, light = both(raw_config)
    assert "train_leg" in {rule["rule"] for rule in summary_document(study, light, {})["rules"]}
    # the adapted annotator's labels are learnt from by the table of annotators, so the one training is of them
    run = light_table(light).rows[0].run
    assert (run.labels.annotator, run.epochs) == ("mine", 2)
    assert [job.annotator for job in light.selected_labels] == ["mine"]
    raw_config["select"] |= {"annotators": [], "experiments": ["ablation_residual"]}
    _, light = both(raw_config)
    assert light.selected_labels == []
    assert [row.name for row in light_table(light).rows] == ["run"]


def test_segmentation_starts_from_the_training_that_there_is(raw_config: dict[str, Any]) -> None:
    raw_config["select"]["segmentation"] = ["segmentation_published", "segmentation"]
    study, light = both(raw_config)
    table = light_segmentation(light)
    assert table is not None
    (row,) = table.rows
    assert row.run.start is light_table(light).rows[0].run
    recipe = row.run.spec["recipe"]
    assert (recipe["iterations"], recipe["interval_iterations"], recipe["warmup_iterations"]) == (50, 50, 10)
    assert row.run.name not in study.segmentations
    assert len({run.name for run in light.selected_runs}) == 2
    rules = {rule["rule"]: rule for rule in summary_document(study, light, {})["rules"]}
    assert (len(rules["train_segmentation"]["jobs"]), rules["train_segmentation"]["study_jobs"]) == (1, 10)
    raw_config["select"]["segmentation"] = ["segmentation_published"]
    _, light = both(raw_config)
    table = light_segmentation(light)
    assert table is not None
    assert (table.rows[0].run.backbone, table.rows[0].run.start) == ("published", None)
    raw_config["machine"]["leg_epochs"] = 1
    _, light = both(raw_config)
    table = light_segmentation(light)
    assert table is not None
    assert table.rows[0].run.epochs == 2
    raw_config["select"] |= {"experiments": [], "annotators": []}  # nothing but heads on weights that others trained
    study, light = both(raw_config)
    assert light_table(light) is None
    (run,) = light.segmentations.values()
    assert light_results(light) == [run.result(0)]
    assert {rule["rule"] for rule in summary_document(study, light, {})["rules"]} == {
        "make_scene_manifest", "train_segmentation_leg", "train_segmentation", "evaluate_segmentation",
    }  # fmt: skip


def test_small_studies_and_caps_that_are_there(raw_config: dict[str, Any]) -> None:
    raw_config["caps"] |= {"epochs": 1, "images": 500, "seeds": 1}
    _, light = both(raw_config)
    assert light.train_images == 500  # 4 of each of 1000 classes would be more than the study has


def test_no_experiment_takes_its_name(raw_config: dict[str, Any]) -> None:
    raw_config["experiments"]["first_light"] = raw_config["experiments"]["ablation_residual"]
    with pytest.raises(ConfigError, match=r"results/first_light\.csv is another result of every study"):
        Study.plan(raw_config)
