"""The plan of studies on one's own classes: adapted annotators, annotators measured alone, students that start pretrained."""

from __future__ import annotations

from typing import Any

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.planned import AnnotatorJob
from tokenlabel.core.study import Study

Raw = dict[str, Any]


@pytest.fixture
def own(raw_config: Raw) -> Raw:
    """The paper's catalogue on a data set of three classes, with an annotator adapted from EfficientNet-B3."""
    raw_config["dataset"].update(
        name="mine", num_classes=3, class_map=None, val=None, val_fraction=0.2, train_images=80, val_images=20
    )
    raw_config["annotators"]["mine"] = {"base": "efficientnet_b3", "adapt": "probe", "folds": 5}
    raw_config["models"]["student"] = {
        "architecture": "timm/tf_efficientnet_b3", "weights": "hub", "image_px": 224, "stochastic_depth": 0.0, "eval_crop": 1.0
    }  # fmt: skip
    raw_config["defaults"]["annotator"] = "mine"
    raw_config["select"] = {"annotators": ["mine"], "experiments": ["own"]}
    raw_config["experiments"]["own"] = {
        "question": "?", "paper": "none", "seeds": [0], "set": {"model": "student"},
        "rows": [
            {"name": "alone", "set": {"model": "annotator"}},
            {"name": "finetune", "set": {"train.supervision": "hard"}},
            {"name": "token", "set": {}},
        ],
    }  # fmt: skip
    return raw_config


def test_an_adapted_annotator_is_one_job_that_its_labels_wait_for(own: Raw) -> None:
    study = Study.plan(own)
    table = study.tables["own"]
    alone = table.rows[0].run
    assert isinstance(alone, AnnotatorJob)
    labels = study.selected_labels[0]
    assert labels.adapted is alone
    assert alone.adapted
    assert labels.spec["annotator"]["num_classes"] == 3
    assert labels.spec["annotator"]["adaptation"]["adaptation"]["base"]["num_classes"] == 1000
    assert labels.spec["labels"]["k"] == 3  # at most as many as there are classes
    assert table.rows[2].run.labels is labels
    assert len(table.inputs) == 3
    plan = table.as_json()
    assert [row["epochs"] for row in plan["rows"]] == [0, 310, 310]
    assert plan["rows"][0]["annotator"]["name"] == "mine"


@pytest.mark.parametrize(
    ("change", "labels_change", "run_changes"),
    [
        (lambda c: c["annotators"]["mine"].update(folds=0), True, [False, True]),
        (lambda c: c["annotators"]["efficientnet_b3"].update(weights_sha256="a" * 64), True, [False, True]),
        (lambda c: c["models"]["student"].update(weights=None), False, [True, True]),
        (lambda c: c["machine"].update(workers=1), False, [False, False]),
    ],
    ids=["folds", "weights of the base", "the student's start", "machine"],
)
def test_what_changes_which_digest(own: Raw, change: Any, labels_change: bool, run_changes: list[bool]) -> None:
    before = Study.plan(own)
    change(own)
    after = Study.plan(own)
    assert (before.labels.keys() != after.labels.keys()) == labels_change
    names = [[row.run.name for row in study.tables["own"].rows[1:]] for study in (before, after)]
    assert [a != b for a, b in zip(*names, strict=True)] == run_changes


def test_a_model_without_pretrained_weights_has_the_spec_that_it_had(raw_config: Raw) -> None:
    run = next(iter(Study.plan(raw_config).runs.values()))
    assert set(run.spec["model"]) == {"architecture", "settings", "stochastic_depth"}


def test_fine_tuning_an_annotator_is_the_run_of_a_plain_fine_tuning(own: Raw) -> None:
    own["annotators"]["mine"] = {
        "base": "efficientnet_b3", "adapt": "finetune", "model": "student", "recipe": "released_code"
    }  # fmt: skip
    study = Study.plan(own)
    alone, plain = study.tables["own"].rows[0].run, study.tables["own"].rows[1].run
    assert isinstance(alone, AnnotatorJob)
    assert alone.run is plain  # one training serves both
    assert alone.spec["adaptation"]["run"] == plain.name


def test_a_pretrained_annotator_is_measured_alone_too(raw_config: Raw) -> None:
    raw_config["experiments"]["main"]["rows"].append({"name": "teacher", "set": {"model": "annotator"}})
    study = Study.plan(raw_config)
    job = study.tables["main"].rows[-1].run
    assert isinstance(job, AnnotatorJob)
    assert (job.annotator, job.adapted, job.spec["adaptation"]) == ("nfnet_f6", False, None)
    assert study.evaluation_document(job.evaluation)[1]["crop"] == 1.0


def mine(**changes: Any) -> dict[str, Any]:
    return {"base": "efficientnet_b3", "adapt": "probe"} | changes


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (mine(base="efficientnet_b33"), r"annotators\.mine\.base: unknown annotator.*Did you mean 'efficientnet_b3'"),
        (mine(folds=1), r"annotators\.mine: .*folds 1: one fold has no other"),
        (mine(folds=21), r"annotators\.mine\.folds: 21"),
        (mine(adapt="probes"), r"annotators\.mine\.adapt: 'probes' is not legal\. Did you mean 'probe'"),
        (mine(adapt="finetune"), r"finetune needs model"),
        (mine(adapt="finetune", folds=3, model="student", recipe="finetune"), r"folds: only with adapt: probe"),
        (mine(model="student"), r"model and recipe: only with adapt: finetune"),
        (mine(adapt="finetune", model="lvvit_s", recipe="finetune"), r"'lvvit_s' is lvvit_s, the base .* same network"),
        (mine(adapt="finetune", model="student", recipe="nope"), r"annotators\.mine\.recipe: unknown recipe 'nope'"),
        (mine(fold=3), r"annotators\.mine\.fold: unknown key.*Did you mean 'folds'"),
    ],
)
def test_mistakes_stop_the_plan_with_the_key(own: Raw, entry: dict[str, Any], said: str) -> None:
    own["annotators"]["mine"] = entry
    with pytest.raises(ConfigError, match=said) as caught:
        Study.plan(own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["labels"].update(scales=[1.0, 0.7]), r"labels: .*0\.7 x image_px 576 is 403\.2, not whole pixels"),
        (lambda c: c["labels"].update(k="every"), r"labels\.k"),
        (lambda c: c["labels"].update(k=0), r"labels\.k"),
        (lambda c: c["dataset"].update(max_unreadable_fraction=2), r"dataset\.max_unreadable_fraction: 2"),
    ],
)
def test_label_settings_that_are_not_legal(raw_config: Raw, change: Any, said: str) -> None:
    change(raw_config)
    with pytest.raises(ConfigError, match=said):
        Study.plan(raw_config)


def test_k_all_stores_every_class_and_no_tail(raw_config: Raw) -> None:
    raw_config["labels"].update(k="all", tail=True)
    settings = Study.plan(raw_config).selected_labels[0].spec["labels"]
    assert (settings["k"], settings["tail"]) == (1000, False)
