"""Planning the paper's study on a machine with no data and no GPU; every mistake stops there with one line."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from tokenlabel.core.errors import TokenLabelError
from tokenlabel.core.study import Study

from .conftest import REPOSITORY, planned_jobs, run_snakemake

FULL = {
    "make_manifest": 1, "annotate_shard": 576, "train_run": 66, "evaluate_run": 66, "make_table": 11, "measure_fidelity": 9,
    "make_fidelity_table": 1, "draw_label_maps": 1, "draw_curves": 11, "draw_accuracy_parameters": 1, "make_report_pages": 1,
    "make_report": 1, "all": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--profile", "slurm", "-n", "all"], FULL),
        pytest.param(["-n", "all"], FULL, marks=pytest.mark.campaign),  # the next test plans it with legs
        (["-n", "labels"], {"make_manifest": 1, "annotate_shard": 576, "labels": 1}),
        pytest.param(
            ["-n", "results/label_fidelity.csv"],
            {"make_manifest": 1, "annotate_shard": 576, "measure_fidelity": 9, "make_fidelity_table": 1},
            marks=pytest.mark.campaign,
        ),
        (
            ["-n", "results/ablation_annotators.csv"],
            {"make_manifest": 1, "annotate_shard": 576, "train_run": 10, "evaluate_run": 10, "make_table": 1},
        ),
        pytest.param(
            ["-n", "results/ablation_participation.csv"],
            {"make_manifest": 1, "annotate_shard": 64, "train_run": 10, "evaluate_run": 10, "make_table": 1},
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            ["-n", "results/ablation_augmentation.csv"],
            {"make_manifest": 1, "annotate_shard": 64, "train_run": 5, "evaluate_run": 5, "make_table": 1},
            marks=pytest.mark.campaign,
        ),
        (
            ["-n", "results/ablation_geometry.csv"],  # both read the same label maps
            {"make_manifest": 1, "annotate_shard": 64, "train_run": 2, "evaluate_run": 2, "make_table": 1},
        ),
        (
            ["-n", "results/main.csv"],
            {"make_manifest": 1, "annotate_shard": 64, "train_run": 10, "evaluate_run": 10, "make_table": 1},
        ),
        (
            ["-n", "so_far", "results/comparison_cait.csv"],  # nothing is trained for what exists
            {"make_table_so_far": 11, "make_segmentation_so_far": 2, "make_so_far_index": 1, "so_far": 1, "make_comparison": 1},
        ),
    ],
    ids=["slurm all", "all", "labels", "fidelity", "annotators", "participation", "augmentation", "geometry", "main", "so far"],
)  # fmt: skip
def test_the_imagenet_study_is_planned_within_ten_seconds_and_leaves_no_trace(
    tmp_path: Path, arguments: list[str], expected: dict[str, int]
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run_snakemake(tmp_path, *arguments, overlay={"data_root": "/no/such/folder"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert planned_jobs(finished) == expected
    # processor seconds, which other tests on the same two cores do not lengthen; planning is one busy thread
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 10
    assert [path.name for path in tmp_path.iterdir() if path.name != ".snakemake"] == ["study.yaml"]


def test_long_trainings_are_planned_as_legs_in_a_row(tmp_path: Path) -> None:
    """Trainings of 310 epochs, ten of them cooling down, become four jobs each, those of 300 three; fine-tunings stay one."""
    overlay = {"data_root": "/no/such/folder", "machine": {"leg_epochs": 100}}
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "all", overlay=overlay))
    assert jobs.pop("train_leg") == 3 * 51 + 2 * 10
    assert jobs == FULL


MISTAKES: list[tuple[str, Callable[[dict[str, Any]], Any], list[str]]] = [
    ("misspelt key", lambda o: o.update(labels={"imagepx": 3}), ["labels.imagepx", "'image_px'"]),
    ("wrong type", lambda o: o.update(labels={"shards": "many"}), ["labels.shards", "'many'"]),
    ("unknown model", lambda o: o.update(defaults={"model": "lvvit_x"}), ["defaults.model", "'lvvit_x'", "lvvit_s"]),
    (
        "unknown annotator",
        lambda o: o.update(select={"annotators": ["nfnet_f7"]}),
        ["select.annotators[0]", "'nfnet_f7'"],
    ),
    (
        "unknown augmentation",
        lambda o: o.update(recipes={"released_code": {"randaugment_operations": ["Shear"]}}),
        ["randaugment_operations", "'Shear'", "ShearX"],
    ),
    (
        "model that is a list",
        lambda o: o.update(defaults={"model": ["lvvit_s"]}),
        ["defaults.model", "['lvvit_s']", "string"],
    ),
    (
        "batch that processes cannot share",
        lambda o: o.update(machine={"processes": 3}),
        ["batch_size 1024", "micro-batches of 128", "3 processes", "machine.micro_batch 114"],
    ),
    (
        "learning rate 0",
        lambda o: o.update(recipes={"finetune": {"learning_rate": 0}}),
        ["finetune.learning_rate", "0"],
    ),
    (
        "annotator of other classes",
        lambda o: o.update(dataset={"num_classes": 10, "class_map": None}),
        ["efficientnet_b3", "1000 classes", "has 10"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line_that_names_it(
    raw_config: dict[str, Any], change: Callable[[dict[str, Any]], Any], expected: list[str]
) -> None:
    overlay: dict[str, Any] = {}
    change(overlay)
    update_config(raw_config, overlay)  # as Snakemake merges it
    with pytest.raises(TokenLabelError) as refused:
        Study.plan(raw_config)
    for part in expected:
        assert part in str(refused.value)


# each of the two ways in which a study can be wrong, for real; that the lines are right, the test above says
def test_an_experiment_that_stands_twice_in_an_overlay_stops_the_plan(tmp_path: Path) -> None:
    """YAML would keep the last of them and say nothing."""
    row = "{question: '?', paper: none, seeds: [0], rows: [{name: a, set: {}}]}"
    (tmp_path / "mine.yaml").write_text(f"experiments:\n  mine: {row}\n  mine: {row}\n")
    finished = run_snakemake(tmp_path, "-n", "all", "--configfile", str(tmp_path / "mine.yaml"))
    assert finished.returncode != 0
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith(
        "line 3: 'mine' stands in line 2 of experiments already, which would be lost. Rename or remove one."
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [mistake[1:] for mistake in MISTAKES if mistake[0] in ("misspelt key", "batch that processes cannot share")],
    ids=["misspelt key", "batch"],
)
def test_a_mistake_stops_the_plan_with_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: list[str]
) -> None:
    overlay: dict[str, Any] = {}
    change(overlay)
    finished = run_snakemake(tmp_path, "-n", "all", overlay=overlay)
    assert finished.returncode != 0
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    for part in expected:
        assert part in line
    assert "Traceback" not in finished.stderr


# one table of few jobs: what is said before the first of them, all 700 would say
ONE_TABLE = {"select": {"annotators": ["efficientnet_b3"], "experiments": ["ablation_geometry"]}}


def test_a_missing_data_root_is_said_before_any_job(tmp_path: Path) -> None:
    overlay = ONE_TABLE | {"data_root": "/no/such/folder"}
    finished = run_snakemake(tmp_path, "all", "--cores", "1", overlay=overlay)
    assert finished.returncode != 0
    assert "error: configuration key data_root: '/no/such/folder': no such folder" in finished.stderr
    assert "rule make_manifest" not in finished.stderr + finished.stdout
    assert not list((tmp_path / ".snakemake" / "locks").iterdir())  # the next call is not refused


def test_an_unwritable_results_folder_is_said_before_any_job(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    finished = run_snakemake(tmp_path, "all", "--cores", "1", overlay=ONE_TABLE | {"data_root": str(tmp_path)})
    assert finished.returncode != 0
    assert "error: results/" in finished.stderr
    assert "cannot be written" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_an_empty_class_folder_stops_the_first_job_with_its_name(tmp_path: Path, photographs: Path) -> None:
    import shutil

    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "train" / "n01440764").mkdir()
    demo = yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text())
    overlay = demo | {"data_root": str(tmp_path / "data")}
    finished = run_snakemake(tmp_path, "labels", "--cores", "1", "--retries", "0", overlay=overlay)
    assert finished.returncode != 0
    assert "train/n01440764: this class folder holds no image file" in finished.stderr
    assert "annotate_shard" not in finished.stdout.split("Select jobs", 1)[-1]


def test_an_architecture_that_timm_does_not_have_stops_the_first_job(tmp_path: Path, photographs: Path) -> None:
    demo = yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text())
    demo["annotators"]["efficientnet_lite0"]["architecture"] = "tf_efficientnet_lite9.in1k"
    overlay = demo | {"data_root": str(photographs)}
    finished = run_snakemake(tmp_path, "labels", "--cores", "1", "--retries", "0", overlay=overlay)
    assert finished.returncode != 0
    assert "unknown timm architecture 'tf_efficientnet_lite9'" in finished.stderr
    assert "tf_efficientnet_lite0" in finished.stderr  # a near one
    assert not (tmp_path / "logs" / "labels").exists()


def test_config_on_the_command_line_sets_the_data_root(tmp_path: Path) -> None:
    finished = run_snakemake(
        tmp_path, "results/ablation_geometry.csv", "--cores", "1", "--config", "data_root=/not/here"
    )
    assert "'/not/here'" in finished.stderr


def test_a_training_starts_as_many_processes_as_the_machine_says(tmp_path: Path) -> None:
    overlay = {"machine": {"processes": 4, "threads": 2, "train_mem_mb": 1000}}
    found = run_snakemake(tmp_path, "-n", "-p", "results/ablation_geometry.csv", "--cores", "64", overlay=overlay)
    assert found.returncode == 0, found.stderr[-3000:]
    shells = [line for line in (found.stdout + found.stderr).splitlines() if "tokenlabel.train" in line]
    assert shells
    assert all("-m tokenlabel.engine.launch --processes 4 tokenlabel.train --spec" in line for line in shells)
    training = (found.stdout + found.stderr).split("rule train_run:", 1)[1].split("rule ", 1)[0]
    assert "threads: 8" in training
    assert "mem_mb=4000" in training
