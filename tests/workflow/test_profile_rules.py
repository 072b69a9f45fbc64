"""The Slurm profile against the rules and against Snakemake: nothing is missing, nothing is misspelt, nothing overrides a rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import REPOSITORY, run_snakemake
from tokenlabel.start.doctor_slurm import RETRIES

ON_CPU = {
    "make_manifest",
    "make_scene_manifest",
    "draw_label_maps",
    "draw_light_maps",
    "draw_segmentation_views",
}  # of the rules that are submitted


@pytest.fixture(scope="module")
def profile() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "slurm" / "config.yaml").read_text(encoding="utf-8"))


def rules() -> dict[str, str]:
    """Name -> text of every rule; one that uses another has its text too."""
    found: dict[str, str] = {}
    included = re.findall(r'^include: "(.+)"', (REPOSITORY / "Snakefile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in (REPOSITORY / name for name in included):  # a rule stands before those that use it
        for text in re.split(r"^(?=rule |use rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if named := re.match(r"use rule (\w+) as (\w+) with:", text):
                found[named[2]] = found[named[1]] + text
            elif named := re.match(r"rule (\w+):", text):
                found[named[1]] = text
    return found


def submitted() -> dict[str, str]:
    return {name: text for name, text in rules().items() if "localrule: True" not in text}


def test_every_submitted_rule_has_a_partition_with_or_without_gpus(profile: dict[str, Any]) -> None:
    on_gpu = set(profile["set-resources"])
    assert not on_gpu & ON_CPU
    assert submitted().keys() == on_gpu | ON_CPU
    assert {name for name, text in submitted().items() if re.search(r"^        gpu=", text, re.MULTILINE)} == on_gpu
    assert len({tuple(entry.items()) for entry in profile["set-resources"].values()}) == 1  # one place to edit


def test_every_submitted_rule_says_its_processors_memory_time_and_retries() -> None:
    for name, text in submitted().items():
        assert re.search(r"^    threads: ", text, re.MULTILINE), name
        assert re.search(r"^        mem_mb=lambda wildcards, attempt: .*\battempt,", text, re.MULTILINE), name
        assert re.search(
            r"^        runtime=(\w+_runtime|lambda wildcards, attempt: .*\battempt),", text, re.MULTILINE
        ), name
        assert re.search(r"^    retries: ", text, re.MULTILINE), name
    assert max(int(found) for found in re.findall(r"retries\((\d+)\)", "".join(submitted().values()))) == RETRIES


def test_the_profile_sets_nothing_that_a_rule_decides(profile: dict[str, Any]) -> None:
    """mem_mb and runtime of default-resources give way to a rule's; what set-resources says does not."""
    for name, resources in profile["set-resources"].items():
        assert not resources.keys() & {"mem_mb", "runtime", "gpu", "nodes", "mpi", "threads"}, name
    assert not profile.keys() & {"set-threads", "retries", "cores"}


def test_a_submitted_job_asks_for_what_its_rule_says(tmp_path: Path) -> None:
    overlay = {
        "machine": {"processes": 8, "nodes": 4, "max_job_hours": 24, "micro_batch": 16},
        "plan": {"gpus": 32},
    }
    shown = run_snakemake(tmp_path, "-n", "--profile", "slurm", "results/ablation_participation.csv", overlay=overlay)
    assert shown.returncode == 0, shown.stderr[-3000:]
    blocks = re.split(r"\n(?=rule )", shown.stdout + shown.stderr)
    train = next(block for block in blocks if block.startswith(("rule train_run", "rule train_leg")))
    asked = dict(re.findall(r"(\w+)=([^,\s]+)", next(line for line in train.splitlines() if "resources:" in line)))
    expected = {
        "slurm_partition": "gpu", "gpu": "32", "nodes": "4", "mpi": "srun", "tasks_per_node": "8", "tasks_per_gpu": "0",
        "cpus_per_task": "8", "mem_mb": "512000",
    }  # fmt: skip
    assert {name: asked.get(name) for name in expected} == expected
    assert int(asked["runtime"]) <= 24 * 60
    shard = next(block for block in blocks if block.startswith("rule annotate_shard"))
    assert "gpu=1" in shard
    assert "mpi=" not in shard
    command = next(line for line in train.splitlines() if "tokenlabel.train " in line)
    assert "-m tokenlabel.engine.launch --nodes 4 --processes 8 --srun --threads 8 tokenlabel.train" in command


@pytest.mark.parametrize(("hours", "jobs"), [(None, 1), pytest.param(1000, 1, marks=pytest.mark.campaign), (24, 20)])
def test_a_partitions_limit_cuts_trainings_into_legs(tmp_path: Path, hours: float | None, jobs: int) -> None:
    """310 epochs x 1.28 M photographs x 6.57 GMAC x 6 at 18.75 TFLOPS are 232 h, asked for twice: 464 h."""
    overlay = {"machine": {"max_job_hours": hours}}
    shown = run_snakemake(tmp_path, "-n", "--profile", "slurm", "results/ablation_geometry.csv", overlay=overlay)
    assert shown.returncode == 0, shown.stderr[-3000:]
    limits = [
        int(found)
        for rule, found in re.findall(r"\nrule (train_\w+):.*?runtime=(\d+)", shown.stdout + shown.stderr, re.DOTALL)
    ]
    assert len(limits) == 2 * jobs
    assert hours is None or max(limits) <= hours * 60
