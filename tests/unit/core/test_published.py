"""What decides an evaluation and what a published checkpoint's: beside the runs, which never follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tokenlabel.core.config import load_config
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.identity import STAGE_VERSIONS
from tokenlabel.core.study import Study

Raw = dict[str, Any]


def evaluations(study: Study) -> set[str]:
    return {run.evaluation for run in study.runs.values()}


def test_the_released_checkpoints_are_measured_as_their_authors_did(raw_config: Raw) -> None:
    jobs = dict(Study.plan(raw_config).published.jobs)
    assert {name: (job.spec["image_px"], job.entry.eval_crop, job.entry.top1) for name, job in jobs.items()} == {
        "lvvit_t": (224, 0.9, 79.1), "lvvit_s": (224, 0.9, 83.3), "lvvit_s_384": (384, 0.9, 84.4), "lvvit_m": (224, 1.0, 84.0),
        "lvvit_m_384": (384, 1.0, 85.4), "lvvit_m_448": (448, 1.0, 85.5), "lvvit_l_448": (448, 1.0, 86.2),
        "lvvit_l_512": (512, 1.0, 86.4),
    }  # fmt: skip
    for job in jobs.values():
        assert job.entry.source.endswith(job.entry.weights.removeprefix("file:"))
        assert (job.spec["interpolation"], job.spec["use_ema"]) == ("bicubic", False)
    # timm resizes to int(224 / 0.9) = 248 px and crops 224 of them
    assert {name: job.spec["crop"] for name, job in jobs.items()} == {
        "lvvit_t": 224 / 248, "lvvit_s": 224 / 248, "lvvit_s_384": 384 / 426, "lvvit_m": 1.0, "lvvit_m_384": 1.0,
        "lvvit_m_448": 1.0, "lvvit_l_448": 1.0, "lvvit_l_512": 1.0,
    }  # fmt: skip


def test_selected_checkpoints_come_in_the_order_of_the_selection(raw_config: Raw) -> None:
    raw_config["select"]["published"] = ["lvvit_m", "lvvit_t"]
    study = Study.plan(raw_config)
    assert [name for name, _ in study.published.jobs] == ["lvvit_m", "lvvit_t"]
    job = study.published.jobs[0][1]
    assert study.published_job(job.name) == job
    with pytest.raises(ConfigError, match="unknown published checkpoint of this configuration 'lvvit_s-00000000'"):
        study.published_job("lvvit_s-00000000")


def test_a_new_version_of_the_evaluation_is_planned_beside_finished_runs(
    raw_config: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Study.plan(raw_config)
    published = set(before.published.inputs)
    monkeypatch.setitem(STAGE_VERSIONS, "evaluate", STAGE_VERSIONS["evaluate"] + 1)
    after = Study.plan(raw_config)
    assert before.runs.keys() == after.runs.keys()
    assert before.labels.keys() == after.labels.keys()
    assert not evaluations(before) & evaluations(after)
    assert not published & set(after.published.inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["evaluation"].update(test_sets=["imagenet_a"]),
        lambda c: c["evaluation"].update(real_labels=None),
        lambda c: c["evaluation"]["real_labels"].update(sha256="0" * 64),
    ],
    ids=["test sets", "no reassessed labels", "other labels"],
)
def test_what_is_measured_decides_evaluations_and_no_run(raw_config: Raw, change: Callable[[Raw], Any]) -> None:
    before = Study.plan(raw_config)
    change(raw_config)
    after = Study.plan(raw_config)
    assert before.runs.keys() == after.runs.keys()
    assert not evaluations(before) & evaluations(after)
    for run in after.runs.values():
        assert after.evaluation_document(run.evaluation)[1]["stage"] == "evaluate"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["test_sets"]["imagenet_v2"].update(path="/elsewhere/v2"),
        lambda c: c["evaluation"]["real_labels"].update(file="real.json"),
        lambda c: c["machine"].update(speed_seconds=9),
        lambda c: c["published"]["lvvit_s"].update(source="https://elsewhere.org", top1=80.0),
    ],
    ids=["place of a test set", "place of the labels", "timing", "what was printed"],
)
def test_where_things_lie_decides_nothing(raw_config: Raw, change: Callable[[Raw], Any]) -> None:
    raw_config["evaluation"]["test_sets"] = ["imagenet_v2"]
    before = Study.plan(raw_config)
    change(raw_config)
    after = Study.plan(raw_config)
    assert evaluations(before) == evaluations(after)
    assert before.published.inputs == after.published.inputs


def test_places_reach_the_job(raw_config: Raw) -> None:
    raw_config["evaluation"]["test_sets"] = ["imagenet_v2"]
    machine = Study.plan(raw_config).machine()
    assert machine["test_sets"] == {"imagenet_v2": "imagenetv2-matched-frequency-format-val"}
    assert machine["real_labels"].endswith("imagenet_real_labels.json")


def test_reassessed_labels_are_for_their_own_data_set(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    assert "real_labels" in study.evaluation_spec(0.9)
    raw_config["dataset"]["name"] = "mine"
    assert "real_labels" not in Study.plan(raw_config).evaluation_spec(0.9)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda c: c["evaluation"].update(test_sets=["imagenet_b"]),
            ["evaluation.test_sets[0]", "'imagenet_b'", "imagenet_a"],
        ),
        (lambda c: c["select"].update(published=["lvvit_x"]), ["select.published[0]", "'lvvit_x'", "lvvit_s_384"]),
        (lambda c: c["select"].update(published=[]), ["select.published"]),
        (
            lambda c: c["test_sets"]["imagenet_a"].update(classes="wordnet"),
            ["test_sets.imagenet_a.classes", "'wordnet'"],
        ),
        (lambda c: c["published"]["lvvit_s"].update(crop=1.0), ["published.lvvit_s.crop", "unknown key", "eval_crop"]),
        (lambda c: c["evaluation"]["real_labels"].pop("sha256"), ["evaluation.real_labels.sha256", "missing"]),
    ],
)
def test_mistakes_name_the_key(raw_config: Raw, change: Callable[[Raw], Any], parts: list[str]) -> None:
    change(raw_config)
    with pytest.raises(ConfigError) as caught:
        load_config(raw_config)
    for part in parts:
        assert part in str(caught.value)
