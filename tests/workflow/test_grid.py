"""The grid as data: an entry in the configuration is jobs, a table, a figure and a caption; what is shared is computed once."""

from __future__ import annotations

import copy
import csv
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.identity import STAGE_VERSIONS
from tokenlabel.core.study import Study

from .conftest import everything_under, planned_jobs, run_snakemake

Raw = dict[str, Any]
SEEDS = [0, 1, 2]
OF_A_TABLE = [
    "results/{0}.csv",
    "results/{0}.md",
    "results/figures/{0}.png",
    "results/figures/curves_{0}.csv",
    "results/figures/curves_{0}.png",
]


def planned_outputs(finished: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Output -> rule of every job of a dry run."""
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = {}
    for block in re.split(r"\n(?=(?:local)?rule )", finished.stdout + finished.stderr):
        name = re.match(r"(?:local)?rule (\w+):", block)
        outputs = re.search(r"\n    output: (.*)", block)
        if name and outputs:
            found.update(dict.fromkeys(re.sub(r" \(update\)", "", outputs[1]).split(", "), name[1]))
    return found


def with_seeds(raw: Raw, seeds: list[int]) -> Raw:
    return {"experiments": {name: {"seeds": seeds} for name in raw["select"]["experiments"]}}


def test_with_three_seeds_runs_are_tripled_and_labels_are_not(raw_config: Raw, tmp_path: Path) -> None:
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "all", overlay=with_seeds(raw_config, SEEDS)))
    assert {name: jobs[name] for name in ("train_run", "evaluate_run", "annotate_shard", "make_manifest")} == {
        "train_run": 198, "evaluate_run": 198, "annotate_shard": 576, "make_manifest": 1,
    }  # fmt: skip


def test_five_ablations_that_contain_the_default_train_it_once(raw_config: Raw, tmp_path: Path) -> None:
    study = Study.plan(raw_config)
    default = next(row.run for row in study.tables["main"].rows if row.name == "lvvit_s")
    five = [
        "ablation_supervision", "ablation_augmentation", "ablation_participation", "ablation_variants", "ablation_training_path",
    ]  # fmt: skip
    runs = {name: {row.run.name for row in study.tables[name].rows} for name in five}
    assert all(default.name in rows for rows in runs.values())
    finished = run_snakemake(tmp_path, "-n", *(f"results/{name}.csv" for name in five), overlay={})
    outputs = planned_outputs(finished)
    assert outputs[default.done(0)] == "train_run"
    counts = Counter(outputs.values())
    assert counts["train_run"] == planned_jobs(finished)["train_run"] == 37
    assert sum(len(rows) for rows in runs.values()) == 41  # each by itself: the default five times
    assert counts["make_table"] == 4 * 5  # CSV, page, figure and its data each


NEW = {
    "entry": {
        "question": "How large should beta be?", "paper": "section 3.2", "seeds": [0],
        "rows": [
            {"name": "half", "label": "beta 0.5", "set": {"train.token_weight": 0.5}},
            {"name": "double", "label": "beta 2", "set": {"train.token_weight": 2.0}},
            {"name": "default", "label": "beta 1", "set": {}},
        ],
    },
    "grid": {
        "question": "How large should beta be?", "paper": "section 3.2", "seeds": [0],
        "grid": {"train.token_weight": [0.5, 2.0, 1.0]},
    },
}  # fmt: skip


@pytest.mark.parametrize("experiment", NEW.values(), ids=NEW)
def test_a_users_ablation_is_one_entry_and_exactly_its_jobs(raw_config: Raw, tmp_path: Path, experiment: Raw) -> None:
    select = raw_config["select"]["experiments"]
    few = {"annotators": ["nfnet_f6"], "experiments": ["ablation_residual", "ablation_geometry"]}
    assert set(few["experiments"]) < set(select)
    before = planned_outputs(run_snakemake(tmp_path, "-n", "all", overlay={"select": few}))
    more = copy.deepcopy({"select": few, "experiments": {"my_beta": experiment}})
    more["select"]["experiments"].append("my_beta")
    after = planned_outputs(run_snakemake(tmp_path, "-n", "all", overlay=more))
    assert before.items() <= after.items()
    added = {path: rule for path, rule in after.items() if path not in before}
    # two trainings and their evaluations, of two files each: beta 1 is the default run, which ablation_geometry has already
    assert Counter(added.values()) == {"train_run": 2, "evaluate_run": 4, "make_table": 4, "draw_curves": 2}
    assert {path.format("my_beta") for path in OF_A_TABLE} < added.keys()
    runs = {path.split("/")[2] for path, rule in added.items() if rule in ("train_run", "evaluate_run")}
    assert len(runs) == 2
    assert all(run.startswith("lvvit_s-token-nfnet_f6-224px-") for run in runs)


def test_an_added_seed_plans_only_that_seeds_jobs(raw_config: Raw, tmp_path: Path) -> None:
    select = {"select": {"annotators": ["nfnet_f6"], "experiments": ["ablation_residual", "ablation_geometry"]}}

    def outputs(seeds: list[int]) -> dict[str, str]:
        overlay = select | {"experiments": {"ablation_geometry": {"seeds": seeds}}}
        return planned_outputs(run_snakemake(tmp_path, "-n", "all", overlay=overlay))

    before, after = outputs([0, 1]), outputs([0, 1, 7])
    assert before.items() <= after.items()
    added = [path for path in after if path not in before]
    assert Counter(after[path] for path in added) == {
        "train_run": 2,
        "evaluate_run": 4,
    }  # numbers, and those of each class
    assert all("/seed7/" in path for path in added)


def test_an_entry_gets_its_table_figure_and_caption_and_its_removal_deletes_nothing(
    finished_study: Path, small_study: Raw, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(finished_study, study)
    overlay = copy.deepcopy(small_study)
    question = "Does a second look at the same run change anything?"
    overlay["experiments"]["my_look"] = {
        "question": question, "paper": "none", "seeds": [0],
        "rows": [{"name": "again", "label": "once more", "set": {}}],
    }  # fmt: skip
    overlay["select"]["experiments"].append("my_look")
    finished = run_snakemake(study, "all", "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "rule train_run" not in finished.stderr + finished.stdout
    (row,) = csv.DictReader((study / "results" / "my_look.csv").read_text().splitlines())
    assert (row["name"], row["label"]) == ("again", "once more")
    assert (study / "results" / "figures" / "my_look.png").stat().st_size > 5_000
    html = (study / "results" / "report.html").read_text(encoding="utf-8")
    assert question in html
    assert question not in (finished_study / "results" / "report.html").read_text(encoding="utf-8")

    before = results_of(study)
    removed = run_snakemake(study, "all", "--cores", "1", overlay=small_study)
    assert removed.returncode == 0, removed.stderr[-3000:]
    after = results_of(study)
    assert before.keys() <= after.keys()
    changed = {path for path, content in before.items() if after[path] != content}
    assert changed <= {"report.html", "study.json", "tables/report.json"}


def results_of(study: Path) -> dict[str, bytes]:
    """Every file but the report's pages, which are one for each table of the configuration."""
    files = everything_under(study / "results")
    return {name: content for name, content in files.items() if not name.startswith("pages/")}


def things(study: Study) -> dict[str, set[str]]:
    """What a plan makes, by the stage that makes it."""
    runs, labels = list(study.runs.values()), list(study.labels.values())
    return {
        "data": {study.data.marker},
        "annotate": {job.folder for job in labels},
        "adapt": {job.marker for job in study.annotators.values() if job.adapted},
        "train, token": {run.folder for run in runs if run.start is None and run.labels},
        "train, hard": {run.folder for run in runs if run.start is None and not run.labels},
        "finetune": {run.folder for run in runs if run.start},
        "evaluate": {run.result(0).rsplit("/", 1)[1] for run in runs},
        "fidelity": {study.fidelity_of(job).rsplit("/", 1)[1] for job in labels},
    }


EVERYTHING = {"data", "annotate", "train, token", "train, hard", "finetune"}


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("data", EVERYTHING),
        ("annotate", {"annotate", "train, token", "finetune"}),
        ("train", {"train, token", "train, hard", "finetune"}),
        ("finetune", {"finetune"}),
        ("evaluate", {"evaluate"}),
        ("fidelity", {"fidelity"}),
        ("adapt", set()),  # config.yaml adapts no annotator
    ],
)
def test_a_stage_version_makes_that_stage_anew_and_what_reads_it(
    raw_config: Raw, monkeypatch: pytest.MonkeyPatch, stage: str, changed: set[str]
) -> None:
    before = things(Study.plan(raw_config))
    monkeypatch.setitem(STAGE_VERSIONS, stage, 99)
    after = things(Study.plan(raw_config))
    assert {name for name in before if before[name] != after[name]} == changed
    for name in changed:
        assert not before[name] & after[name]
        assert len(before[name]) == len(after[name])
