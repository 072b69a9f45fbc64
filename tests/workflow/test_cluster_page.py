"""docs/cluster.md: its overlay is legal, its commands have the options and targets that it names."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import planned_jobs, run_snakemake
from tokenlabel.cli import VERBS
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "cluster.md").read_text(encoding="utf-8")


def commands(page: str, program: str) -> list[list[str]]:
    """The words of its lines that run a program, without comments."""
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


def test_its_overlay_is_planned(page: str, repository: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_study.yaml").write_text(block)
    study = Study.plan(read_configuration([repository / "config.yaml", tmp_path / "my_study.yaml"]))
    assert (study.config.data_root, study.config.plan.gpus) == ("/scratch/imagenet", 16)


def test_its_tokenlabel_commands_have_these_options(page: str) -> None:
    found = commands(page, "tokenlabel")
    assert {words[1] for words in found} == {"doctor", "fetch"}
    for words in found:
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(f"tokenlabel.{VERBS[words[1]][0]}").add_arguments(parser)
        parser.parse_args(words[2:])


def test_its_snakemake_commands_have_these_targets(page: str, overlay: dict[str, Any], tmp_path: Path) -> None:
    found = [words[1:] for words in commands(page, "snakemake")]
    inside = [shlex.split(words[-1])[1:] for words in commands(page, "tmux")]
    targets = {words[0] if words[0] != "-n" else words[1] for words in found + inside}
    assert targets == {"first_light", "labels", "results/ablation_annotators.csv", "all"}
    targets.remove("first_light")  # which has tests of its own
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", *sorted(targets), overlay=overlay))
    assert {"all", "labels", "make_manifest"} <= set(jobs)


def test_its_script_is_what_it_says(page: str, repository: Path) -> None:
    script = (repository / "slurm" / "snakemake.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    assert options["signal"] in page
    assert options["signal"] == "B:USR1@600"
    assert {"partition", "account", "time", "requeue"} <= set(options)
    for words in commands(page, "sbatch"):
        assert "slurm/snakemake.sbatch" in words
    files = yaml.safe_load((repository / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    assert {"slurm_partition", "slurm_account"} <= set(files["default-resources"])
