"""The plan of segmentation: specs and what decides them, backbones that other tables share, caps, prices, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core import identity
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.needed_weights import needed_weights
from tokenlabel.core.plan import plan_study
from tokenlabel.core.plan_jobs import legs_of, run_seconds, segmentation_evaluation_seconds, segmenter_gmacs
from tokenlabel.core.segment_plan import SegmentationRow
from tokenlabel.core.study import Study

Raw = dict[str, Any]
NOWHERE = Path("/nonexistent")
GOLDEN = {
    "lvvit_s_fcn_hard": "lvvit_s-hard-fcn-ade20k-eb9c2ba7",
    "lvvit_s_fcn_token": "lvvit_s-token-nfnet_f6-fcn-ade20k-fa35b273",
    "lvvit_s_upernet_hard": "lvvit_s-hard-upernet-ade20k-9ea04a41",
    "lvvit_s_upernet_token": "lvvit_s-token-nfnet_f6-upernet-ade20k-a8e3bbc0",
    "lvvit_m_upernet": "lvvit_m-token-nfnet_f6-upernet-ade20k-870eb066",
    "lvvit_l_upernet": "lvvit_l-token-nfnet_f6-upernet-ade20k-5ec370c2",
}


def rows_of(raw: Raw, table: str = "segmentation") -> dict[str, SegmentationRow]:
    return {row.name: row for row in Study.plan(raw).segmentation_tables[table].rows}


def own(raw: Raw, *rows: Raw, **changes: Any) -> Raw:
    """The configuration with an experiment of these rows."""
    entry = {"question": "?", "paper": "none", "seeds": [0], "rows": list(rows), **changes}
    raw["segmentation"]["experiments"]["own"] = entry
    return raw


def test_names_and_digests_stay_as_they_are(raw_config: Raw) -> None:
    """Golden: a change of these plans every run anew, so it must be on purpose."""
    rows = rows_of(raw_config)
    assert {name: row.run.name for name, row in rows.items()} == GOLDEN
    run = rows["lvvit_s_fcn_token"].run
    assert run.scenes.name == "ade20k-de627e64"
    assert run.result(0) == f"results/segmentation/{run.name}/seed0/evaluation-04ff2c4a.json"


def test_a_backbone_is_the_run_of_the_tables_that_have_it_too(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    rows = {row.name: row for row in study.segmentation_tables["segmentation"].rows}
    tables = {(name, row.name): row.run for name in ("main", "ablation_supervision") for row in study.tables[name].rows}
    assert rows["lvvit_s_fcn_token"].run.start is tables["main", "lvvit_s"]
    assert rows["lvvit_s_fcn_hard"].run.start is tables["ablation_supervision", "mixtoken_hard"]
    assert rows["lvvit_l_upernet"].run.start is tables["main", "lvvit_l"]
    start = tables["main", "lvvit_s"]
    assert rows["lvvit_s_fcn_token"].run.spec["start"] == start.name.rsplit("-", 1)[-1]


def test_a_spec_says_what_the_contract_says(raw_config: Raw) -> None:
    raw = own(
        raw_config,
        {"name": "random", "set": {"backbone": "random", "head": "fcn"}},
        {"name": "published", "set": {"backbone": "published", "start": "file:x.pth", "start_sha256": "ab" * 32}},
    )
    rows = rows_of(raw, "own")
    random, published = rows["random"].run, rows["published"].run
    keys = {"stage", "version", "dataset", "model", "image_px", "start", "head", "recipe"}
    assert random.spec.keys() == published.spec.keys() == keys
    assert random.spec["start"] is published.spec["start"] is None
    assert random.spec["model"].keys() == {"architecture", "settings", "stochastic_depth"}
    weights = {key: published.spec["model"][key] for key in ("weights", "weights_sha256", "weights_naming")}
    assert weights == {"weights": "file:x.pth", "weights_sha256": "ab" * 32, "weights_naming": "timm"}
    assert random.name.startswith("lvvit_s-random-fcn-ade20k-")
    assert published.name.startswith("lvvit_s-published-upernet-ade20k-")


def test_machine_settings_and_labels_of_the_paper_change_no_digest(raw_config: Raw) -> None:
    before = rows_of(raw_config)["lvvit_s_fcn_token"].run
    raw_config["segmentation_root"] = "/elsewhere"
    raw_config["machine"]["segment_micro_batch"] = 8
    raw_config["segmentation"]["dataset"]["train"]["images"] = "photographs"
    raw_config["segmentation"]["dataset"] |= {"image_suffix": "_rgb", "mask_suffix": "_L"}
    study = Study.plan(raw_config)
    assert before.name in study.segmentations
    machine = study.machine()
    assert (machine["scenes"]["image_suffix"], machine["scenes"]["mask_suffix"]) == ("_rgb", "_L")
    assert (machine["segmentation_root"], machine["segment_micro_batch"]) == ("/elsewhere", 8)
    assert machine["scenes"]["train"] == {"images": "photographs", "masks": "annotations/training"}
    assert machine["scenes"]["classes"] == "objectInfo150.txt"


@pytest.mark.parametrize(
    ("stage", "scenes", "trained", "measured"),
    [("scenes", True, True, False), ("segment", False, True, False), ("evaluate_segmentation", False, False, True)],
)
def test_a_stages_version_plans_exactly_that_stage_anew(
    raw_config: Raw, monkeypatch: pytest.MonkeyPatch, stage: str, scenes: bool, trained: bool, measured: bool
) -> None:
    before = rows_of(raw_config)["lvvit_s_fcn_token"].run
    monkeypatch.setitem(identity.STAGE_VERSIONS, stage, 99)
    after = rows_of(raw_config)["lvvit_s_fcn_token"].run
    assert (after.scenes.name != before.scenes.name) is scenes
    assert (after.name != before.name) is trained
    assert (after.evaluation != before.evaluation) is measured
    assert after.start == before.start


def test_caps_win_and_say_what_they_changed(raw_config: Raw) -> None:
    raw_config["caps"] |= {"iterations": 100, "segment_crop_px": 64, "batch_size": 4, "images": 50, "seeds": 1}
    raw_config["segmentation"]["experiments"]["segmentation"]["seeds"] = [0, 1, 2]
    study = Study.plan(raw_config)
    table = study.segmentation_tables["segmentation"]
    recipe = table.rows[0].run.spec["recipe"]
    chosen = {
        key: recipe[key]
        for key in ("iterations", "interval_iterations", "warmup_iterations", "crop_px", "short_side_px")
    }
    assert chosen == {
        "iterations": 100, "interval_iterations": 100, "warmup_iterations": 20, "crop_px": 64, "short_side_px": 64,
    }  # fmt: skip
    assert {key: table.testing[key] for key in ("window_px", "stride_px", "short_side_px")} == {
        "window_px": 64, "stride_px": 43, "short_side_px": 64,
    }  # fmt: skip
    assert table.seeds == (0,)
    assert table.rows[0].run.scenes.spec["images"] == 50
    said = table.rows[0].run.capped
    assert {"iterations 160000->100", "crop_px 512->64", "window_px 512->64", "images 20210->50"} <= set(said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"head.chanels": 8}, "own.rows.one.set: unknown setting 'head.chanels'. Did you mean 'head.channels'?"),
        ({"head": "fpn"}, "own.rows.one.set.head: unknown head 'fpn'"),
        ({"head.channels": 0}, "own.rows.one.set.head.channels: 0 is not legal"),
        ({"segment_recipe": "papers"}, "Did you mean 'paper'?"),
        ({"segment.iterations": 6000}, "own.rows.one.set.segment: iterations 6000 must be a multiple"),
        ({"backbone": "big"}, "own.rows.one.set.backbone: unknown backbone 'big'"),
        ({"backbone": "random", "train.epochs": 3}, "own.rows.one.set.train.epochs: describes a backbone's training"),
        ({"backbone": "random", "start": "hub"}, "own.rows.one.set.start: 'hub', but backbone is random"),
        ({"backbone": "published"}, "neither models.lvvit_s has weights nor the row a start"),
        ({"backbone": "published", "start": "x"}, "own.rows.one.set.start.weights: 'x' is not legal"),
        ({"model": "lvvit_x"}, "own.rows.one.set.model: unknown model 'lvvit_x'"),
        ({"train.epochs": 0}, "own.rows.one.set.train.epochs: 0 is not legal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_rows_mistake_is_one_line(raw_config: Raw, row: Raw, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Study.plan(own(raw_config, {"name": "one", "set": row}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_references_to_the_paper_are_checked(raw_config: Raw) -> None:
    with pytest.raises(ConfigError, match="unknown table of segmentation in the paper '4'"):
        Study.plan(own(raw_config, {"name": "one", "paper_row": "4/lvvit_s"}))
    with pytest.raises(ConfigError, match=r"unknown row of Table 5 'lvvit_s_fcn'"):
        Study.plan(own(raw_config, {"name": "one", "paper_row": "5/lvvit_s_fcn"}))
    with pytest.raises(ConfigError, match=r"own\.paper_only: unknown table"):
        Study.plan(own(raw_config, {"name": "one"}, paper_only=4))


def test_the_papers_other_methods_stand_beside_ours(raw_config: Raw) -> None:
    table = Study.plan(raw_config).segmentation_tables["segmentation"]
    names = [row.reference for row in table.paper_only]
    assert len(names) == 10
    assert "6/lvvit_s_fcn" not in names  # stands for our row of Table 5
    paper = next(row.paper for row in table.rows if row.name == "lvvit_s_fcn_token")
    assert (paper.miou_ss, paper.miou_ms, paper.params_m, paper.source) == (47.2, 48.4, 30, "Table 5")
    raw_config["segmentation"]["dataset"]["name"] = "others"
    assert Study.plan(raw_config).segmentation_tables["segmentation"].paper_only == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"segment.crop_px": 500},
            "crop_px 500 must be a multiple of the backbone's token size, 16 px; nearest: 496 or 512",
        ),
        (
            {"head.levels": {"blocks": [4, 17], "scales": [1, 1]}, "head.auxiliary": None, "head": "fcn"},
            "reads block 17",
        ),
        ({"segment.batch_size": 6}, "machine.segment_micro_batch"),
    ],
)
def test_what_cannot_run_is_refused_where_it_is_selected(raw_config: Raw, changes: Raw, said: str) -> None:
    raw = own(raw_config, {"name": "one", "set": changes})
    raw["machine"]["processes"] = 8 if "batch_size" in str(changes) else 1
    raw["machine"]["segment_micro_batch"] = 2
    raw["machine"]["micro_batch"] = 16
    Study.plan(raw)
    raw["select"]["segmentation"] = ["own"]
    with pytest.raises(ConfigError) as caught:
        Study.plan(raw)
    assert said in str(caught.value)


def test_an_experiment_without_its_annotator_is_left_out_unless_selected(raw_config: Raw) -> None:
    raw_config["dataset"].update(name="others", num_classes=20, class_map=None)
    raw_config["select"].update(annotators=[], experiments=["ablation_residual"])
    study = Study.plan(raw_config)
    assert "segmentation" not in study.segmentation_tables
    assert study.offered_segmentations == []
    raw_config["select"]["segmentation"] = ["segmentation"]
    with pytest.raises(ConfigError, match=r"knows 1000 classes"):
        Study.plan(raw_config)


def test_prices_are_operations_over_the_achieved_rate(raw_config: Raw) -> None:
    """By hand: 160,000 steps of 16 crops, forward factor 3, 4 validations of 2,000 scenes in two windows each."""
    study = Study.plan(raw_config)
    run = rows_of(raw_config)["lvvit_s_fcn_hard"].run
    gpu = raw_config["plan"]["gpu_types"]["v100"]
    training, testing = (segmenter_gmacs(study, run, 512, training=value) for value in (True, False))
    assert 44 < testing < training < 62  # LV-ViT-S at 1,024 tokens alone is 44, 13 of them attention
    train = 160_000 * 16 * training * 1e9 * 6 / (gpu["peak_tflops"] * gpu["train_share"] * 1e12)
    validate = 4 * 2000 * 2 * testing * 1e9 * 2 / (gpu["peak_tflops"] * gpu["infer_share"] * 1e12)
    assert run_seconds(study, run) == pytest.approx(train + validate + 30)
    passes = 58  # 2, and twice 2, 2, 4, 8 and 12 windows
    test = 2000 * passes * testing * 1e9 * 2 / (gpu["peak_tflops"] * gpu["infer_share"] * 1e12)
    assert segmentation_evaluation_seconds(study, run) == pytest.approx(test + 30)


def test_what_is_not_selected_is_priced_below_the_total(raw_config: Raw) -> None:
    plan = plan_study(Study.plan(raw_config), NOWHERE)
    assert [row.target for row in plan.unselected] == [
        "segmentation (not selected)",
        "segmentation_published (not selected)",
    ]
    assert plan.rows[-1].target == "total"
    assert plan.rows[-1].hours["segment"] == 0
    own_tables = plan.unselected[0]
    assert own_tables.jobs == 83  # as `snakemake -n results/segmentation.csv` counts them
    assert own_tables.hours["train"] > 0
    assert own_tables.additional_hours["train"] == 0  # other tables train its backbones already
    raw_config["select"]["segmentation"] = ["segmentation"]
    selected = plan_study(Study.plan(raw_config), NOWHERE)
    (row,) = [row for row in selected.rows if row.target == "segmentation"]
    assert row.hours == pytest.approx(own_tables.hours)
    assert selected.rows[-1].gpu_hours == pytest.approx(plan.rows[-1].gpu_hours + own_tables.additional_gpu_hours)
    assert [row.target for row in selected.unselected] == ["segmentation_published (not selected)"]


def test_a_partitions_limit_cuts_a_training_into_intervals(raw_config: Raw) -> None:
    raw_config["machine"]["max_job_hours"] = 24
    study = Study.plan(raw_config)
    run = rows_of(raw_config)["lvvit_s_fcn_hard"].run
    legs = legs_of(study, run)
    assert 1 < legs <= run.epochs == 40
    longest = run_seconds(study, run, run.leg_end(1, legs))
    assert longest <= 12 * 3600  # asked for twice


def test_published_backbones_are_among_the_weights_to_fetch(raw_config: Raw) -> None:
    def needed(raw: Raw) -> dict[str, str | None]:
        return {item.weights: item.url for item in needed_weights(Study.plan(raw), published=False)}

    assert not [name for name in needed(raw_config) if name.startswith("file:lvvit")]
    raw_config["select"]["segmentation"] = ["segmentation_published"]
    found = needed(raw_config)
    assert found["file:lvvit_s-26M-224-83.3.pth.tar"].endswith("lvvit_s-26M-224-83.3.pth.tar")
