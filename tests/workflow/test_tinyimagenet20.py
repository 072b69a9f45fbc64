"""The study in examples/tinyimagenet20 as it is planned: its arms, paired by seed, on both sizes. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.planned import Run
from tokenlabel.core.study import Study

from .conftest import REPOSITORY, planned_jobs, run_snakemake

FOLDER = REPOSITORY / "examples" / "tinyimagenet20"
FILES = {"8000": ["study.yaml"], "2000": ["study.yaml", "train2000.yaml"]}
ARMS = ["hard", "relabel", "token", "token_20"]


def configuration(size: str) -> dict[str, Any]:
    """The merged configuration of one training-set size, as Snakemake merges it."""
    merged: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    for name in FILES[size]:
        update_config(merged, yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))
    return merged


@pytest.mark.parametrize(("size", "runs"), [("8000", 4 * 5 + 2 * 3), ("2000", 4 * 5)])
def test_the_same_dag_runs_it(tmp_path: Path, size: str, runs: int) -> None:
    files = [str(FOLDER / name) for name in FILES[size]]
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "all", "--configfile", *files))
    assert jobs == {
        "make_manifest": 1, "adapt_annotator": 1, "annotate_shard": 4, "train_run": runs, "evaluate_run": runs,
        "make_table": 1 + (size == "8000"), "draw_curves": 1 + (size == "8000"), "measure_fidelity": 1,
        "make_fidelity_table": 1, "draw_label_maps": 1,
        "make_report_pages": 1, "make_report": 1, "all": 1,
    }  # fmt: skip


@pytest.mark.parametrize("size", FILES)
def test_arms_differ_in_supervision_alone_and_share_their_seeds(size: str) -> None:
    study = Study.plan(configuration(size))
    table = study.tables["token_labels"]
    assert [row.name for row in table.rows] == ARMS
    assert table.seeds[:3] == study.tables["token_loss"].seeds == (0, 1, 2)
    own = [row.run for row in (*table.rows, *study.tables["token_loss"].rows)]
    runs = [run for run in own if isinstance(run, Run)]
    assert len(runs) == len(ARMS) + 3
    specs = [{**run.spec, "labels": None, "recipe": dict(run.spec["recipe"])} for run in runs]
    supervised = ("supervision", "class_target", "token_weight", "participation")
    found = [tuple(spec["recipe"].pop(name) for name in supervised) for spec in specs]
    assert all(spec == specs[0] for spec in specs[1:])  # model, data, augmentation, optimiser
    assert found == [
        ("hard", "label", 0.0, 1.0), ("relabel", "map", 0.0, 1.0), ("token", "map", 1.0, 1.0), ("token", "map", 1.0, 0.2),
        ("hard", "label", 0.0, 1.0), ("token", "label", 1.0, 1.0), ("token", "map", 0.5, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("size", FILES)
def test_labels_leak_nothing_and_are_compared_on_the_held_out_part(size: str) -> None:
    study = Study.plan(configuration(size))
    (labels,) = study.used_labels
    assert labels.adapted is not None
    assert labels.adapted.spec["adaptation"]["folds"] == 5
    assert labels == study.reference
    evaluations = {row.run.evaluation for row in study.tables["token_labels"].rows}
    (evaluation,) = (study.evaluation_document(digest)[1] for digest in evaluations)
    assert evaluation["agreement"] == labels.name
    assert labels.markers_of("val") == [f"{labels.folder}/val-0000{shard}-of-00002.done" for shard in range(2)]


def test_both_sizes_are_held_to_the_same_photographs_and_nothing_else_is_shared() -> None:
    large, small = (Study.plan(configuration(size)) for size in FILES)
    assert large.config.dataset.val == small.config.dataset.val
    assert not {run.name for run in large.selected_runs} & {run.name for run in small.selected_runs}


@pytest.mark.parametrize(
    ("name", "message"),
    [("lite1", "evaluation.agreement: unknown annotator 'lite1'"), ("lite0", "evaluation.agreement: annotator 'lite0' knows 1000")],
    ids=["unknown", "of other classes"],
)  # fmt: skip
def test_an_annotator_that_cannot_be_compared_with_is_refused(name: str, message: str) -> None:
    wrong = configuration("8000")
    wrong["evaluation"]["agreement"] = name
    with pytest.raises(ConfigError) as refused:
        Study.plan(wrong)
    assert message in str(refused.value)


def test_an_evaluation_without_comparison_is_as_before() -> None:
    plain = configuration("8000")
    compared = Study.plan(plain)
    plain["evaluation"]["agreement"] = None
    study = Study.plan(plain)
    assert study.reference is None
    run, other = (s.tables["token_labels"].rows[0].run for s in (study, compared))
    assert "agreement" not in study.evaluation_document(run.evaluation)[1]
    assert run.name == other.name  # the trainings are the same
    assert run.evaluation != other.evaluation
