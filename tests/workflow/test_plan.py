"""results/plan.csv: made at once without data, anew when a job finishes or a price changes, never on a dry run."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tokenlabel.core.files import write_text
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import plan_study
from tokenlabel.core.study import Study

from .conftest import REPOSITORY, planned_jobs, run_snakemake

TARGET = "results/plan.csv"


def rows(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / TARGET).open(encoding="utf-8", newline="") as file:
        return {row["target"]: row for row in csv.DictReader(file)}


def test_the_default_study_is_priced_on_a_fresh_checkout(tmp_path: Path) -> None:
    assert planned_jobs(run_snakemake(tmp_path, "-n", TARGET)) == {"make_plan": 1}
    assert not (tmp_path / "results").exists()
    assert run_snakemake(tmp_path, TARGET, "--cores", "1").returncode == 0
    made = rows(tmp_path)
    assert int(made["total"]["jobs"]) > 700
    assert made["total"]["jobs"] == made["total"]["jobs_to_do"]
    assert (tmp_path / "results/plan.md").exists()
    assert (tmp_path / "results/figures/plan.png").exists()
    assert planned_jobs(run_snakemake(tmp_path, "-n", TARGET)) == {}
    # the plan counts what `snakemake all` plans, besides labels that no run learns from
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "all"))
    jobs.pop("all")
    assert int(made["report"]["jobs"]) == sum(jobs.values())


def test_a_finished_studys_plan_has_what_its_jobs_took(
    finished_study: Path, overlay: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    study = Study.plan(read_configuration([REPOSITORY / "config.yaml", tmp_path / "study.yaml"]))
    plan = plan_study(study, finished_study)
    total = next(row for row in plan.rows if row.target == "report")  # the published checkpoints are not measured in it
    assert total.basis == "measured"
    assert (total.jobs_to_do, total.remaining_gpu_hours, total.wall_hours) == (0, 0, 0)
    assert {found.kind for found in plan.corrections} >= {"label lite0", "train lvvit_small", "finetune lvvit_small"}
    overlay["experiments"]["main"]["seeds"] = [0, 1]
    overlay["caps"]["seeds"] = 2
    write_text(tmp_path / "more.yaml", yaml.safe_dump(overlay))
    more = plan_study(
        Study.plan(read_configuration([REPOSITORY / "config.yaml", tmp_path / "more.yaml"])), finished_study
    )
    (row,) = [row for row in more.rows if row.target == "main"]
    assert row.jobs_to_do == 4  # training, fine-tuning and their evaluations; the table is there, if of one seed
    assert "4 corrected" in row.basis
    assert row.remaining_gpu_hours > 0


def test_a_price_or_a_finished_job_makes_it_anew(overlay: dict[str, Any], tmp_path: Path) -> None:
    assert run_snakemake(tmp_path, TARGET, "--cores", "1", overlay=overlay).returncode == 0
    assert rows(tmp_path)["total"]["cost"] == "0.00"
    overlay["plan"]["price_per_gpu_hour"] = 1000
    assert run_snakemake(tmp_path, TARGET, "--cores", "1", overlay=overlay).returncode == 0
    before = rows(tmp_path)["total"]
    assert float(before["cost"]) > 0
    study = Study.plan(read_configuration([REPOSITORY / "config.yaml", tmp_path / "study.yaml"]))
    marker = study.selected_labels[0].markers[0]
    benchmark = tmp_path / marker.replace("results/", "benchmarks/", 1).replace(".done", ".tsv")
    for path, text in ((tmp_path / marker, "{}"), (benchmark, "s\th:m:s\n7200.0\t2:00:00\n")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert run_snakemake(tmp_path, TARGET, "--cores", "1", overlay=overlay).returncode == 0
    after = rows(tmp_path)["total"]
    assert int(after["jobs_to_do"]) == int(before["jobs_to_do"]) - 1
    assert float(after["label_gpu_hours"]) >= 4.0  # two shards at two hours
    benchmark.write_text("s\th:m:s\nsoon\t-\n", encoding="utf-8")
    refused = run_snakemake(tmp_path, TARGET, "--cores", "1", overlay=overlay)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "gives 'soon' for its seconds" in line


def test_bad_settings_stop_at_once(overlay: dict[str, Any], tmp_path: Path) -> None:
    overlay["plan"]["gpu"] = "h1000"
    refused = run_snakemake(tmp_path, "-n", TARGET, overlay=overlay)
    assert refused.returncode == 1
    assert (
        "error: configuration key plan.gpu: unknown GPU 'h1000'. Did you mean 'h100'? Legal: a100, cpu"
        in refused.stderr
    )


def test_the_plan_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from tokenlabel.cli import main; "
        f"code = main(['plan', '--directory', {str(tmp_path)!r}, '--figure', {str(tmp_path / 'plan.png')!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
