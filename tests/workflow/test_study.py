"""A study that ran: what a change plans, what it leaves alone, and what the results say."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.warm import warm_python
from tokenlabel.core.files import read_json, write_json
from tokenlabel.data.manifest import build_manifests, load_manifest
from tokenlabel.labels import LabelStore

from .conftest import REPOSITORY, everything_under, planned_jobs, run_snakemake

Overlay = dict[str, Any]


REPORTED = {"draw_accuracy_parameters": 1, "make_report_pages": 1, "make_report": 1}  # whatever changes a run of main


def test_everything_is_made_and_the_tables_agree_with_the_runs(finished_study: Path) -> None:
    results = finished_study / "results"
    rows = list(csv.DictReader((results / "ablation_annotators.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["hard_labels", "lite0"]
    for row in rows:
        (evaluation,) = (results / "runs" / row["run"] / "seed0").glob("evaluation-*.json")
        measured = read_json(evaluation)
        assert float(row["top1_mean"]) == pytest.approx(measured["top1"], abs=0.006)
        assert int(row["val_images"]) == measured["val_images"] == 40
        assert "epochs 30->2" in row["capped"]
        assert row["difference"] == ""
    page = (results / "ablation_annotators.md").read_text(encoding="utf-8")
    assert "Rows: 2 done." in page
    assert "Validation photographs: 40." in page
    main = list(csv.DictReader((results / "main.csv").read_text().splitlines()))
    assert [row["image_px"] for row in main] == ["64", "80"]
    assert (results / "figures" / "label_maps.png").stat().st_size > 10_000
    curves = list(csv.DictReader((results / "figures" / "curves_main.csv").read_text().splitlines()))
    assert [(line["name"], line["epoch"]) for line in curves] == [
        (row["name"], f"{n}") for row in main for n in range(2)
    ]
    assert "epochs 30->2" in curves[0]["capped"]
    drawn = list(csv.DictReader((results / "figures" / "main.csv").read_text().splitlines()))
    assert [f"{float(line['x']):.2f}" for line in drawn] == [row["top1_mean"] for row in main]
    beside = list(csv.DictReader((results / "figures" / "accuracy_parameters.csv").read_text().splitlines()))
    assert [(line["kind"], line["state"]) for line in beside] == [("ours", "done")] * 2  # the paper's are of ImageNet
    (fidelity,) = csv.DictReader((results / "label_fidelity.csv").read_text().splitlines())
    assert (fidelity["annotator"], fidelity["photographs"], fidelity["labeled"]) == ("lite0", "6", "24")
    assert float(fidelity["cosine_low"]) <= float(fidelity["cosine"]) <= float(fidelity["cosine_high"])
    for folder in ("logs", "benchmarks"):
        stems = {
            path.relative_to(finished_study / folder).with_suffix("") for path in (finished_study / folder).rglob("*.*")
        }
        assert {Path("tables/main"), Path("report"), Path("figures/label_maps")} <= stems


def test_the_report_holds_tables_figures_and_their_captions(finished_study: Path) -> None:
    html = (finished_study / "results" / "report.html").read_text(encoding="utf-8")
    for part in (
        "ablation_annotators.csv",
        "main.csv",
        "label_maps.png",
        "label_fidelity.csv",
        "label_fidelity.png",
        "curves_main.png",
        "accuracy_parameters.png",
        "train_run",
        "annotate_shard",
    ):
        assert part in html
    assert "Do three annotators each write labels" in html


def test_labels_are_a_store_that_other_code_can_open(finished_study: Path) -> None:
    (folder,) = (finished_study / "results" / "labels").iterdir()
    store = LabelStore(folder, "train")
    assert (len(store), store.grid, store.k) == (24, (5, 5), 5)
    assert store.verify()


def test_specs_lie_beside_the_outputs_and_say_what_was_run(finished_study: Path) -> None:
    runs = sorted((finished_study / "results" / "runs").iterdir())
    assert len(runs) == 3  # hard, token, fine-tuned; nothing for rows that nobody asked for
    for run in runs:
        spec = read_json(run / "spec.json")
        assert spec["recipe"]["epochs"] == 2
        assert read_json(run / "seed0" / "done.json")["digest"] == run.name.rsplit("-", 1)[1]
        config = read_json(run / "seed0" / "config.json")
        assert config["model_args"]["img_size"] == spec["image_px"]
        assert config["pretrained_cfg"]["crop_pct"] == 0.95


def test_a_second_call_does_nothing(finished_study: Path, overlay: Overlay) -> None:
    assert planned_jobs(run_snakemake(finished_study, "-n", "all", overlay=overlay)) == {}


def test_touched_and_copied_files_rerun_no_run(finished_study: Path, overlay: Overlay, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    for path in copy.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)  # every file is new, in arbitrary order
    # the page of label maps is above 1 MB, where Snakemake compares times and not contents: only the report is made again
    assert planned_jobs(run_snakemake(copy, "-n", "all", overlay=overlay)).keys() <= {
        "make_report_pages",
        "make_report",
        "all",
    }
    # without Snakemake's own records it cannot compare contents: tables are made again, which costs seconds, no run is
    shutil.rmtree(copy / ".snakemake")
    jobs = planned_jobs(run_snakemake(copy, "-n", "all", overlay=overlay))
    cheap = {"make_table", "draw_curves", "draw_accuracy_parameters", "make_fidelity_table", "draw_label_maps"}
    assert jobs.keys() <= cheap | {"make_report_pages", "make_report", "all"}


def test_machine_values_rerun_nothing(finished_study: Path, overlay: Overlay) -> None:
    overlay["machine"].update(workers=1, micro_batch=8, precision="float32", part_seconds=5, leg_epochs=1)
    overlay.update(weights_root="/elsewhere", data_root="/elsewhere")
    before = everything_under(finished_study / "results")
    assert planned_jobs(run_snakemake(finished_study, "-n", "all", overlay=overlay)) == {}
    assert everything_under(finished_study / "results") == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda o: o["recipes"]["demo"].update(weight_decay=0.1),
            {"train_run": 3, "evaluate_run": 3, "make_table": 2, "draw_curves": 2, **REPORTED},
        ),
        (
            lambda o: o["recipes"]["demo_finetune"].update(weight_decay=0.1),
            {"train_run": 1, "evaluate_run": 1, "make_table": 1, "draw_curves": 1, **REPORTED},
        ),
        (
            lambda o: o["labels"].update(k=3),
            {
                "annotate_shard": 2,
                "draw_label_maps": 1,
                "measure_fidelity": 1,
                "make_fidelity_table": 1,
                "train_run": 2,
                "evaluate_run": 2,
                "make_table": 2,
                "draw_curves": 2,
                **REPORTED,
            },
        ),
        (
            lambda o: o.update(evaluation={"interpolation": "bilinear"}),
            {"evaluate_run": 3, "make_table": 2, "draw_curves": 2, **REPORTED},  # the plan that names both is new
        ),
        (
            lambda o: o["fidelity"].update(crops=1),
            {"measure_fidelity": 1, "make_fidelity_table": 1, "make_report_pages": 1, "make_report": 1},
        ),
    ],
    ids=["recipe", "fine-tuning recipe", "labels", "evaluation", "fidelity"],
)
def test_a_scientific_value_plans_exactly_what_depends_on_it_beside_the_finished_runs(
    finished_study: Path, overlay: Overlay, change: Any, expected: dict[str, int]
) -> None:
    change(overlay)
    before = everything_under(finished_study / "results")
    jobs = planned_jobs(run_snakemake(finished_study, "-n", "all", overlay=overlay))
    jobs.pop("all")
    assert jobs == expected
    assert everything_under(finished_study / "results") == before  # a plan deletes and writes nothing


@pytest.mark.campaign  # half a minute
def test_a_changed_value_is_run_beside_the_old_runs_none_of_which_is_deleted(
    finished_study: Path, overlay: Overlay, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    before = everything_under(copy / "results" / "runs") | everything_under(copy / "results" / "labels")
    overlay["recipes"]["demo_finetune"]["weight_decay"] = 0.1
    finished = run_snakemake(copy, "results/main.csv", "--cores", "2", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    after = everything_under(copy / "results" / "runs") | everything_under(copy / "results" / "labels")
    assert before.items() <= after.items()
    new = {path.split("/")[0] for path in after.keys() - before.keys()}
    assert len(new) == 1
    assert next(iter(new)).startswith("lvvit_small-token-lite0-64to80px-")


@pytest.mark.campaign
def test_a_run_in_legs_is_the_run_in_one_piece(finished_study: Path, overlay: Overlay, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    (run,) = (copy / "results" / "runs").glob("*-hard-*")
    before = everything_under(run / "seed0")
    done = str((run / "seed0" / "done.json").relative_to(copy))
    shutil.rmtree(run / "seed0")
    overlay["machine"]["leg_epochs"] = 1
    assert planned_jobs(run_snakemake(copy, "-n", done, overlay=overlay)) == {"train_leg": 1, "train_run": 1}
    finished = run_snakemake(copy, done, "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    after = everything_under(run / "seed0")
    new = {name for name in after.keys() - before.keys() if not name.startswith("events.out.tfevents")}
    assert new == {"leg-01-of-02.done", "resumes.jsonl"}
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert after.get(name) == before.get(name)
    assert read_json(run / "seed0" / "done.json")["legs"] == 2
    for legs in (1, None):  # whatever it says now, a finished run stays
        overlay["machine"]["leg_epochs"] = legs
        assert planned_jobs(run_snakemake(copy, "-n", done, overlay=overlay)) == {}


def test_a_new_experiment_plans_exactly_its_jobs(finished_study: Path, overlay: Overlay) -> None:
    overlay["experiments"]["ablation_beta"] = {
        "question": "How large should beta be?", "paper": "section 3.2", "seeds": [0],
        "grid": {"train.token_weight": [0.5, 1.0]},
    }  # fmt: skip
    jobs = planned_jobs(run_snakemake(finished_study, "-n", "results/ablation_beta.csv", overlay=overlay))
    assert jobs == {"train_run": 1, "evaluate_run": 1, "make_table": 1}


def test_a_table_follows_its_rows_even_without_snakemakes_records(
    finished_study: Path, overlay: Overlay, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    shutil.rmtree(copy / ".snakemake")
    overlay["experiments"]["ablation_annotators"]["rows"][0]["label"] = "renamed"
    finished = run_snakemake(copy, "results/ablation_annotators.csv", "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "renamed" in (copy / "results" / "ablation_annotators.csv").read_text()
    assert "rule train_run" not in finished.stderr


def test_the_report_alone_is_made_of_what_exists(finished_study: Path, overlay: Overlay, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    (copy / "results" / "figures" / "main.png").unlink()
    overlay["select"]["experiments"] = ["main", "ablation_annotators", "ablation_residual"]
    jobs = planned_jobs(run_snakemake(copy, "-n", "results/report.html", overlay=overlay))
    assert jobs.pop("make_table_so_far") > 1
    assert jobs == {
        "make_plan": 1,
        "make_so_far_index": 1,
        "make_report_pages": 1,
        "make_report": 1,
    }  # what needs no run


def test_an_added_photograph_makes_one_shard_again_and_no_run(
    finished_study: Path, overlay: Overlay, photographs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    shutil.copytree(photographs, tmp_path / "photographs")
    overlay["data_root"] = str(tmp_path / "photographs")
    results = copy / "results"
    write_json(results / "machine.json", read_json(results / "machine.json") | {"data_root": overlay["data_root"]})
    (data,) = (results / "data").iterdir()
    first = tmp_path / "photographs" / "train" / load_manifest(data, "train").path(0)
    before = load_manifest(data, "train").shard_digests
    spec, machine = read_json(data / "spec.json"), read_json(results / "machine.json")
    for number in range(1000):  # the study is capped at 24 of the photographs: one that comes in puts another one out
        added = first.with_name(f"added{number}.jpg")
        shutil.copy(first, added)
        after = build_manifests(spec, machine)["train"].shard_digests
        if sum(old != new for old, new in zip(before, after, strict=True)) == 1:
            break
        added.unlink()
    finished = subprocess.run(
        [warm_python(), "-m", "tokenlabel", "refresh", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"    {first.parent.name}/{added.name}" in finished.stderr.splitlines()
    assert "train: 1 removed" in finished.stderr
    (stale,) = re.findall(r"to be made again: (train-\d{5}-of-00002)$", finished.stderr, flags=re.MULTILINE)
    runs = everything_under(results / "runs")
    expected = {"annotate_shard": 1, "labels": 1}
    targets = ("labels", "results/main.csv", "results/ablation_annotators.csv")
    assert planned_jobs(run_snakemake(copy, "-n", *targets, overlay=overlay)) == expected
    # a job that fails leaves the plan as it was: without its marker, every finished run would be trained again
    nowhere = overlay | {"data_root": str(tmp_path / "nowhere")}
    failed = run_snakemake(copy, "labels", "--cores", "1", "--retries", "0", overlay=nowhere)
    assert failed.returncode == 1
    assert "nowhere: no such folder" in failed.stderr
    assert planned_jobs(run_snakemake(copy, "-n", *targets, overlay=overlay)) == expected
    (labels,) = (results / "labels").iterdir()
    shards = {path.name: path.read_bytes() for path in labels.glob("*.h5")}
    made = run_snakemake(copy, *targets, "--cores", "1", overlay=overlay)
    assert made.returncode == 0, made.stderr[-3000:]
    changed = [path.stem for path in labels.glob("*.h5") if shards[path.name] != path.read_bytes()]
    assert changed == [stale]
    assert everything_under(results / "runs") == runs
    store = LabelStore(labels, "train", manifest_digests=load_manifest(data, "train").shard_digests)
    assert len(store) == 24
    assert planned_jobs(run_snakemake(copy, "-n", *targets, overlay=overlay)) == {}


def test_jobs_that_finished_without_their_snakemake_are_not_run_again_and_the_rest_is_made(
    finished_study: Path, overlay: Overlay, tmp_path: Path
) -> None:
    """Snakemake was killed, its jobs went on: it records them as begun and does not know that they ended."""
    copy = tmp_path / "copy"
    shutil.copytree(finished_study, copy)
    records = copy / ".snakemake"
    for marker in [*copy.glob("results/**/*.done"), *copy.glob("results/**/done.json")]:
        name = base64.urlsafe_b64encode(str(marker.relative_to(copy)).encode()).decode()
        (records / "metadata" / name).rename(records / "incomplete" / name)
    (copy / "results" / "main.csv").unlink()
    before = everything_under(copy / "results" / "runs") | everything_under(copy / "results" / "labels")
    finished = run_snakemake(copy, "results/main.csv", "--cores", "2", "--rerun-incomplete", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (copy / "results" / "main.csv").exists(), finished.stderr[-3000:]
    assert everything_under(copy / "results" / "runs") | everything_under(copy / "results" / "labels") == before
    assert not [path for path in (records / "incomplete").rglob("*") if path.is_file()]


@pytest.mark.campaign  # half a minute
def test_an_interrupted_study_completes_at_the_next_call(small_study: Overlay, tmp_path: Path) -> None:
    """Snakemake and its job are killed in the middle of stage 1; the same command finishes the labels."""
    overlay = json.loads(json.dumps(small_study))
    overlay["machine"].update(part_seconds=0.01, annotate_batch=1)
    overlay["labels"]["shards"] = 1
    import yaml

    (tmp_path / "study.yaml").write_text(yaml.safe_dump(overlay))
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "labels", "--cores", "1",
        "--directory", str(tmp_path), "--configfile", str(tmp_path / "study.yaml"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("results/labels/*/*.parts/part-*.h5"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("results/labels/*/*.done"))
    locked = run_snakemake(tmp_path, "labels", "--unlock", overlay=overlay)
    assert locked.returncode == 0, locked.stderr
    finished = run_snakemake(tmp_path, "labels", "--cores", "1", overlay=overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    (folder,) = (tmp_path / "results" / "labels").iterdir()
    assert len(LabelStore(folder, "train")) == 24
    log = next((tmp_path / "logs" / "labels").rglob("*.log")).read_text()
    resumed = re.search(r"resuming: (\d+) of 24", log)
    assert resumed
    assert int(resumed[1]) >= 3


def test_the_readmes_python_runs_as_it_stands(finished_study: Path) -> None:
    models, block = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (folder,) = (finished_study / "results" / "labels").iterdir()
    (data,) = (finished_study / "results" / "data").iterdir()
    code = block.replace("results/labels/nfnet_f6-1a2b3c4d", str(folder))
    code = code.replace("n01440764/a.JPEG", load_manifest(data, "train").path(0)) + "\nprint(float(loss))\n"
    models += "\nprint(tuple(output.token_logits.shape), output.grid, tuple(logits.shape), tuple(maps.shape))\n"
    answers = []
    for program in (models, code):
        found = subprocess.run([warm_python(), "-c", program], capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == 0, found.stderr
        answers.append(found.stdout.strip())
    assert answers[0] == "(4, 16, 20) (4, 4) (4, 20) (4, 20, 4, 4)"
    assert 1 < float(answers[1]) < 20
