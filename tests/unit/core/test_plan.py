"""The price of a study: shared parts once, finished jobs by what they measured, those like them corrected, bad input named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel.core.errors import ConfigError, DataError
from tokenlabel.core.files import write_json, write_text
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import Plan, PlanRow, plan_study
from tokenlabel.core.plan_jobs import gmacs_of
from tokenlabel.core.planned import LabelJob, Run
from tokenlabel.core.study import Study

Raw = dict[str, Any]
NOWHERE = Path("/nonexistent")


def price(raw: Raw, base: Path = NOWHERE) -> Plan:
    return plan_study(Study.plan(raw), base)


def row_of(plan: Plan, target: str) -> PlanRow:
    (row,) = [row for row in plan.rows if row.target == target]
    return row


def run_of(study: Study, table: str, row: str) -> Run:
    (run,) = [found.run for found in study.tables[table].rows if found.name == row]
    assert isinstance(run, Run)
    return run


def finish(base: Path, path: str, seconds: float | None, benchmark: str = "") -> None:
    """Leaves what a finished job leaves: its marker and, where `seconds` says so, its benchmark file."""
    write_json(base / path, {})
    if seconds is not None:
        place = benchmark or str(Path("benchmarks", *Path(path).parts[1:]).with_suffix(".tsv"))
        write_text(base / place, f"s\th:m:s\n{seconds}\t-\n")


def finish_run(base: Path, run: Run, seed: int, seconds: float | None) -> None:
    finish(base, run.done(seed), seconds, f"benchmarks/runs/{run.name}/seed{seed}/train.tsv")


@pytest.fixture
def two(raw_config: Raw) -> Raw:
    """Two tables that share LV-ViT-S, one annotator."""
    raw_config["select"].update(annotators=["nfnet_f6"], experiments=["main", "ablation_geometry"])
    return raw_config


def test_every_target_has_a_row_and_shared_parts_are_paid_for_once(raw_config: Raw) -> None:
    plan = price(raw_config)
    targets = [row.target for row in plan.rows]
    assert targets[:9] == [f"labels {name}" for name in raw_config["select"]["annotators"]]
    assert targets[9] == "published"
    assert targets[10:21] == raw_config["select"]["experiments"]
    assert targets[21:] == ["label fidelity", "training curves", "report", "total"]
    total = plan.rows[-1]
    assert sum(row.additional_gpu_hours for row in plan.rows[:-1]) == pytest.approx(total.gpu_hours)
    assert sum(row.gpu_hours for row in plan.rows[10:21]) > total.gpu_hours
    assert row_of(plan, "training curves").additional_gpu_hours == 0
    assert row_of(plan, "report").jobs == total.jobs - 9  # published checkpoints are no part of it
    assert row_of(plan, "report").jobs == 745  # as `snakemake -n all` counts them, but for the rule `all` itself
    assert 0 < row_of(plan, "published").gpu_hours < 10
    assert all(row.basis == "estimate" for row in plan.rows)


def test_curves_of_segmenters_are_among_the_jobs_of_the_report(raw_config: Raw) -> None:
    raw_config["select"]["segmentation"] = ["segmentation"]
    plan = price(raw_config)
    assert row_of(plan, "training curves").additional_gpu_hours == 0
    assert row_of(plan, "training curves").hours["segment"] > 0
    assert row_of(plan, "report").jobs == 761  # as `snakemake -n all` counts them, but for the rule `all` itself


def test_hours_are_operations_over_the_achieved_rate(two: Raw) -> None:
    """By hand: 310 epochs of 1,281,167 photographs, 6.55 G multiply-adds, forward factor 3, 31 validations."""
    plan = price(two)
    gpu = two["plan"]["gpu_types"]["v100"]
    train = 310 * 1_281_167 * 6.5515e9 * 6 / (gpu["peak_tflops"] * gpu["train_share"] * 1e12)
    validate = 31 * 50_000 * 6.5515e9 * 2 / (gpu["peak_tflops"] * gpu["infer_share"] * 1e12)
    assert row_of(plan, "ablation_geometry").hours["train"] == pytest.approx(2 * (train + validate) / 3600, rel=1e-3)
    labels = 1_281_167 * 377.3e9 * 2 / (gpu["peak_tflops"] * gpu["infer_share"] * 1e12)
    assert row_of(plan, "labels nfnet_f6").gpu_hours == pytest.approx((labels + 64 * 30) / 3600, rel=1e-3)
    assert row_of(plan, "labels nfnet_f6").cost == pytest.approx(row_of(plan, "labels nfnet_f6").gpu_hours * 3.06)


def test_a_row_with_fewer_blocks_costs_less(raw_config: Raw) -> None:
    """Ablations change the network; the catalogue's multiply-adds are those of the whole one."""
    raw_config["select"]["experiments"] = ["ablation_training_path"]
    raw_config["experiments"]["ablation_training_path"]["rows"] = raw_config["experiments"]["ablation_training_path"][
        "rows"
    ][:2]
    study = Study.plan(raw_config)
    shallow, deep = (gmacs_of(study, run_of(study, "ablation_training_path", name)) for name in ("deit_s", "depth_16"))
    assert shallow is not None
    assert deep is not None
    assert shallow == pytest.approx(4.608 + 0.075, rel=0.01)  # DeiT-S with a token head
    assert deep / shallow == pytest.approx(16 / 12, rel=0.03)


def test_seeds_multiply_trainings_and_no_labels(two: Raw) -> None:
    before = row_of(price(two), "ablation_geometry")
    two["experiments"]["ablation_geometry"]["seeds"] = [0, 1, 2]
    after = row_of(price(two), "ablation_geometry")
    assert after.hours["train"] == pytest.approx(3 * before.hours["train"])
    assert after.hours["label"] == before.hours["label"]
    assert after.jobs == before.jobs + 2 * 2 * 2  # trainings and evaluations of two more seeds
    assert after.weights_gb == pytest.approx(3 * before.weights_gb)
    assert after.labels_gb == before.labels_gb


def test_legs_are_jobs_in_a_row_and_cost_their_starts(two: Raw) -> None:
    two["select"]["experiments"] = ["ablation_geometry"]
    whole = price(two).rows[-1]
    two["machine"]["leg_epochs"] = 100
    legs = price(two).rows[-1]
    assert legs.jobs == whole.jobs + 2 * 3  # 310 epochs: four legs
    assert legs.gpu_hours - whole.gpu_hours == pytest.approx(2 * 3 * 30 / 3600)
    assert legs.wall_hours > whole.wall_hours
    assert legs.checkpoints_gb == whole.checkpoints_gb


def test_several_gpus_a_training_shorten_the_wall_and_not_the_bill(two: Raw) -> None:
    two["select"]["experiments"] = ["ablation_geometry"]
    one = price(two).rows[-1]
    two["machine"].update(processes=8, micro_batch=64)
    eight = price(two).rows[-1]
    assert eight.gpu_hours == pytest.approx(one.gpu_hours, rel=0.01)
    assert eight.wall_hours < 0.3 * one.wall_hours
    assert eight.wall_hours >= eight.wall_hours_least >= eight.gpu_hours / 8 * (1 - 1e-9)


def test_finished_jobs_count_what_they_took_and_correct_those_like_them(two: Raw, tmp_path: Path) -> None:
    study = Study.plan(two)
    before = plan_study(study, tmp_path)
    exact, released = (run_of(study, "ablation_geometry", name) for name in ("exact", "released"))
    finish_run(tmp_path, exact, 0, 3_600_000)
    after = plan_study(study, tmp_path)
    was, row = row_of(before, "ablation_geometry"), row_of(after, "ablation_geometry")
    ratio = 3_600_000 / 3600 / (was.hours["train"] / 2)
    (correction,) = after.corrections
    assert (correction.kind, correction.jobs) == ("train lvvit_s", 1)
    assert correction.ratio == pytest.approx(ratio)
    assert row.hours["train"] == pytest.approx(1000 + 1000)  # one measured, one like it
    assert row.basis == f"1 measured, 1 corrected x{ratio:.3g} from 1 job, 66 estimate"
    assert row.jobs_to_do == was.jobs_to_do - 1
    assert row.remaining_gpu_hours == pytest.approx(row.gpu_hours - 1000)
    assert row.remaining_cost == pytest.approx(row.remaining_gpu_hours * 3.06)
    assert row_of(after, "main").hours["finetune"] == row_of(before, "main").hours["finetune"]  # another stage
    finish_run(tmp_path, released, 0, 1_800_000)
    assert row_of(plan_study(study, tmp_path), "ablation_geometry").hours["train"] == pytest.approx(1500)


def test_labels_are_corrected_by_their_first_shards(two: Raw, tmp_path: Path) -> None:
    study = Study.plan(two)
    (labels,) = study.selected_labels
    before = row_of(plan_study(study, tmp_path), "labels nfnet_f6")
    for marker in labels.markers[:4]:
        finish(tmp_path, marker, 2 * before.gpu_hours / 64 * 3600)
    after = row_of(plan_study(study, tmp_path), "labels nfnet_f6")
    assert after.gpu_hours == pytest.approx(2 * before.gpu_hours)
    assert after.jobs_to_do == before.jobs_to_do - 4
    assert after.basis == "4 measured, 60 corrected x2 from 4 jobs"


def test_a_finished_job_without_a_benchmark_is_finished_all_the_same(two: Raw, tmp_path: Path) -> None:
    study = Study.plan(two)
    (labels,) = study.selected_labels
    before = row_of(plan_study(study, tmp_path), "labels nfnet_f6")
    for marker in labels.markers:
        finish(tmp_path, marker, None)
    finish(tmp_path, study.data.marker, None)
    after = row_of(plan_study(study, tmp_path), "labels nfnet_f6")
    assert after.gpu_hours == before.gpu_hours
    assert (after.jobs_to_do, after.remaining_gpu_hours, after.wall_hours, after.remaining_cost) == (0, 0, 0, 0)


def test_legs_that_are_done_are_no_work_to_come(two: Raw, tmp_path: Path) -> None:
    two["select"]["experiments"] = ["ablation_geometry"]
    two["machine"]["leg_epochs"] = 155  # two legs
    study = Study.plan(two)
    run = run_of(study, "ablation_geometry", "exact")
    finish(tmp_path, run.leg_done(0, 1, 2), 7200)
    half = plan_study(study, tmp_path).rows[-1]
    assert half.basis.startswith("1 measured, 3 corrected")
    finish_run(tmp_path, run, 0, 3600)
    whole = plan_study(study, tmp_path).rows[-1]
    assert whole.jobs_to_do == half.jobs_to_do - 1
    assert whole.hours["train"] == pytest.approx(3 + 3)  # both legs of one, and the other like them
    (tmp_path / run.leg_done(0, 1, 2)).unlink()  # a finished run needs no marker of its legs
    assert plan_study(study, tmp_path).rows[-1].jobs_to_do == whole.jobs_to_do


def test_jobs_of_other_hardware_are_called_out(two: Raw, tmp_path: Path) -> None:
    study = Study.plan(two)
    finish_run(tmp_path, run_of(study, "ablation_geometry", "exact"), 0, 36_000_000)
    (note,) = [note for note in plan_study(study, tmp_path).notes if "plan.gpu" in note]
    assert note.startswith("train lvvit_s: 1 finished job took ")
    assert note.endswith("Is plan.gpu (v100) what they ran on?")


def test_a_malformed_benchmark_of_a_finished_job_is_named(two: Raw, tmp_path: Path) -> None:
    study = Study.plan(two)
    run = run_of(study, "ablation_geometry", "exact")
    finish_run(tmp_path, run, 0, 1)
    write_text(tmp_path / f"benchmarks/runs/{run.name}/seed0/train.tsv", "s\nnan\n")
    with pytest.raises(DataError, match=r"train\.tsv: gives 'nan' for its seconds"):
        plan_study(study, tmp_path)


def test_a_model_of_unknown_size_is_a_guess_and_says_so(two: Raw) -> None:
    two["models"]["deit_s"].pop("gmacs")
    two["models"]["deit_s"].pop("parameters_m")
    two["experiments"]["ablation_geometry"]["set"] = {"model": "deit_s"}
    plan = price(two)
    assert row_of(plan, "ablation_geometry").basis == "64 estimate, 4 guess"
    assert "Guessed, for models without gmacs in the configuration: evaluate deit_s, train deit_s." in plan.notes
    assert row_of(plan, "ablation_geometry").weights_gb == 0


def test_the_longest_chain_is_named(two: Raw) -> None:
    (note,) = [note for note in price(two).notes if note.startswith("The longest chain")]
    assert "ends with results/runs/lvvit_l-token-nfnet_f6-448to512px-" in note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gpu": "v1000"},
            r"plan\.gpu: unknown GPU 'v1000'\. Did you mean 'v100'\? Legal: a100, cpu, h100, h200, v100",
        ),
        ({"gpus": 0}, r"plan\.gpus: 0 is not legal"),
        ({"price_per_gpu_hour": -1}, r"plan\.price_per_gpu_hour: -1 is not legal"),
        ({"price_per_gpu_hour": float("nan")}, r"plan\.price_per_gpu_hour: nan is not legal"),
        ({"currency": "a lot of money"}, r"plan\.currency: 'a lot of money' is not legal"),
        ({"job_start_s": -1}, r"plan\.job_start_s: -1 is not legal"),
        ({"price": 3}, r"plan\.price: unknown key \(value 3\)\. Legal here: currency, gpu, "),
    ],
    ids=["gpu", "gpus", "price", "nan", "currency", "start", "unknown"],
)
def test_bad_settings_are_one_line(raw_config: Raw, change: Raw, message: str) -> None:
    raw_config["plan"].update(change)
    with pytest.raises(ConfigError, match=message):
        Study.plan(raw_config)


@pytest.mark.parametrize(
    "change", [{"train_share": 1.2}, {"infer_share": 0}, {"peak_tflops": 0}, {"evidence": "hearsay"}]
)
def test_bad_coefficients_are_one_line(raw_config: Raw, change: Raw) -> None:
    raw_config["plan"]["gpu_types"]["v100"].update(change)
    with pytest.raises(ConfigError, match=rf"plan\.gpu_types\.v100\.{next(iter(change))}: "):
        Study.plan(raw_config)


def test_fewer_gpus_than_one_training_holds_are_refused(two: Raw) -> None:
    two["plan"]["gpus"] = 2
    two["machine"]["processes"] = 4
    with pytest.raises(ConfigError, match=r"plan\.gpus: 2 is below machine\.processes 4"):
        price(two)


@pytest.mark.parametrize("overlay", ["demo/config.yaml", "examples/tinyimagenet20/study.yaml"])
def test_other_studies_have_a_plan_on_their_own_hardware(repository: Path, overlay: str) -> None:
    study = Study.plan(read_configuration([repository / "config.yaml", repository / overlay]))
    plan = plan_study(study, NOWHERE)
    assert plan.settings["gpu"] == "cpu"
    assert plan.rows[-1].cost == 0
    assert plan.rows[-1].gpu_hours > 0
    assert {row.target for row in plan.rows} >= {table.name for table in study.selected_tables}


def test_annotators_adapted_and_measured_alone_are_priced(repository: Path) -> None:
    raw = read_configuration([repository / "config.yaml", repository / "demo/config.yaml"])
    raw["annotators"]["mine"] = {"base": "efficientnet_lite0", "adapt": "probe", "folds": 5}
    raw["select"].update(annotators=["mine"], experiments=["main"])
    raw["defaults"]["annotator"] = "mine"
    raw["experiments"]["main"]["rows"].append({"name": "alone", "set": {"model": "annotator"}})
    plan = price(yaml.safe_load(yaml.safe_dump(raw)))
    study = Study.plan(raw)
    (labels,) = study.selected_labels
    assert isinstance(labels, LabelJob)
    assert row_of(plan, "labels mine").jobs == 1 + 1 + labels.shards  # manifest, adaptation, shards
    assert row_of(plan, "main").hours["evaluate"] > 0


def test_a_plan_survives_its_document(raw_config: Raw) -> None:
    plan = price(raw_config)
    assert Plan.from_json(plan.as_json()) == plan
