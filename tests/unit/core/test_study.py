"""The plan: digests follow scientific settings only, equal specs are one run, caps win over experiments."""

from __future__ import annotations

from typing import Any

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.study import Study

Raw = dict[str, Any]


def runs(raw: Raw) -> set[str]:
    return set(Study.plan(raw).runs)


def test_equal_specs_are_shared_between_experiments(raw_config: Raw) -> None:
    study = Study.plan(raw_config)

    def run_of(table: str, row: str) -> str:
        return next(r.run.name for r in study.tables[table].rows if r.name == row)

    base = run_of("main", "lvvit_s")
    assert run_of("ablation_supervision", "mixtoken_token") == base
    assert run_of("ablation_augmentation", "all_but_mixup") == base
    assert run_of("ablation_annotators", "nfnet_f6") == base
    assert run_of("ablation_participation", "lvvit_s_participation_1_0") == base
    assert run_of("ablation_variants", "lvvit_s_token") == base
    assert run_of("ablation_training_path", "token_labels") == base
    assert run_of("ablation_supervision", "mixtoken_hard") == run_of("ablation_annotators", "hard_labels")
    assert len({row.run.name for row in study.tables["ablation_annotators"].rows}) == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(data_root="/elsewhere"),
        lambda c: c.update(weights_root="/elsewhere"),
        lambda c: c["machine"].update(workers=1, device="cpu", precision="float32", micro_batch=2),
        lambda c: c["dataset"].update(train="training", format="folder", train_images=7),
        lambda c: c["experiments"]["main"].update(question="Other words?"),
    ],
    ids=["data_root", "weights_root", "machine", "places", "words"],
)
def test_machine_settings_change_no_path(raw_config: Raw, change: Any) -> None:
    before = Study.plan(raw_config)
    change(raw_config)
    after = Study.plan(raw_config)
    assert before.specs() == after.specs()


def test_a_recipe_key_changes_its_runs_and_no_labels(raw_config: Raw) -> None:
    before = Study.plan(raw_config)
    raw_config["recipes"]["finetune"]["learning_rate"] = 1e-5
    after = Study.plan(raw_config)
    assert before.labels.keys() == after.labels.keys()
    changed = after.runs.keys() - before.runs.keys()
    assert changed
    assert all(after.runs[name].start is not None for name in changed)  # fine-tunings only
    assert len(changed) == len(before.runs.keys() - after.runs.keys())


def test_an_annotators_setting_changes_its_labels_and_their_runs_only(raw_config: Raw) -> None:
    before = Study.plan(raw_config)
    raw_config["annotators"]["efficientnet_b3"]["weights"] = "file:b3.safetensors"
    after = Study.plan(raw_config)
    assert [name.rsplit("-", 1)[0] for name in after.labels.keys() - before.labels.keys()] == ["efficientnet_b3"]
    assert {name.rsplit("-", 1)[0] for name in after.runs.keys() - before.runs.keys()} == {
        "lvvit_s-token-efficientnet_b3-224px"
    }


def test_a_stage_version_makes_new_runs_of_that_stage_and_what_follows(
    raw_config: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Study.plan(raw_config)
    monkeypatch.setitem(__import__("tokenlabel.core.identity", fromlist=["x"]).STAGE_VERSIONS, "finetune", 99)
    after = Study.plan(raw_config)
    assert before.labels.keys() == after.labels.keys()
    assert {run.name for run in before.runs.values() if run.start is None} == {
        run.name for run in after.runs.values() if run.start is None
    }
    assert not {run.name for run in before.runs.values() if run.start} & {
        run.name for run in after.runs.values() if run.start
    }


def test_caps_win_over_an_experiments_own_value(raw_config: Raw) -> None:
    raw_config["experiments"]["main"]["rows"][1]["set"]["train.epochs"] = 500
    raw_config["caps"] = {
        "epochs": 3, "batch_size": 8, "images": 100, "depth": 2, "width": 48, "image_px": 64, "finetune_px": 96, "seeds": 1,
    }  # fmt: skip
    study = Study.plan(raw_config)
    for run in study.runs.values():
        assert run.spec["recipe"]["epochs"] <= 3
        assert run.spec["recipe"]["batch_size"] <= 8
        assert run.spec["image_px"] <= (96 if run.start else 64)
        assert run.spec["dataset"]["images"] == 100
        settings = run.spec["model"]["settings"]
        if run.spec["model"]["architecture"].startswith("lvvit"):
            assert settings["depth"] == 2
            assert settings["width"] == 48
            assert settings["width"] % settings["heads"] == 0
        assert any(note.startswith("epochs") for note in run.capped)


def test_a_cap_never_raises_a_value(raw_config: Raw) -> None:
    before = Study.plan(raw_config).runs.keys()
    raw_config["caps"] = {
        "epochs": 9999,
        "batch_size": 9999,
        "depth": 99,
        "width": 9999,
        "image_px": 2048,
        "finetune_px": 4096,
    }
    assert Study.plan(raw_config).runs.keys() == before


def test_a_new_experiment_is_one_entry_and_only_its_jobs(raw_config: Raw) -> None:
    before = Study.plan(raw_config)
    raw_config["experiments"]["ablation_beta"] = {
        "question": "How large should beta be?", "paper": "section 3.2", "seeds": [0, 1],
        "grid": {"train.token_weight": [0.25, 1.0]},
    }  # fmt: skip
    after = Study.plan(raw_config)
    assert len(after.runs.keys() - before.runs.keys()) == 1  # 1.0 is the default recipe's own run
    assert [row.name for row in after.tables["ablation_beta"].rows] == ["token_weight_0_25", "token_weight_1_0"]
    assert len(after.tables["ablation_beta"].inputs) == 4


def test_an_overlay_may_shorten_a_grid_and_rows_keep_their_names(raw_config: Raw) -> None:
    experiment = raw_config["experiments"]["ablation_participation"]
    experiment["grid"] = {
        "train.participation": [0.2, 1.0],
        "model": ["lvvit_s"],
    }  # an overlay's merge may reorder keys
    rows = Study.plan(raw_config).tables["ablation_participation"].rows
    assert [(row.name, row.paper_top1) for row in rows] == [
        ("lvvit_s_participation_0_2", 82.8),
        ("lvvit_s_participation_1_0", 83.3),
    ]


def test_learning_rates_follow_table_7(raw_config: Raw) -> None:
    rows = {row.name: row.run.spec["recipe"] for row in Study.plan(raw_config).tables["ablation_supervision"].rows}
    assert {name: recipe["learning_rate_batch"] for name, recipe in rows.items()} == {
        "mixtoken_token": 640, "mixtoken_relabel": 1024, "cutmix_relabel": 1024, "mixtoken_hard": 1024, "cutmix_hard": 1024,
    }  # fmt: skip


def test_the_evaluation_sees_what_the_released_validation_saw(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    crops = {row.name: study.evaluation_document(row.run.evaluation)[1]["crop"] for row in study.tables["main"].rows}
    assert crops == {
        "lvvit_t": 0.9, "lvvit_s": 0.9, "lvvit_s_384": 0.9, "lvvit_m": 1.0, "lvvit_m_384": 1.0, "lvvit_l": 1.0,
        "lvvit_l_448": 1.0, "lvvit_l_512": 1.0, "lvvit_l_at_448": 1.0, "lvvit_l_at_448_512": 1.0,
    }  # fmt: skip


def test_fine_tuning_is_a_chain(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    last = next(row.run for row in study.tables["main"].rows if row.name == "lvvit_l_512")
    assert last.start is not None
    assert last.start.start is not None
    assert [run.spec["image_px"] for run in (last.start.start, last.start, last)] == [288, 448, 512]
    assert last.spec["recipe"]["learning_rate"] == 5e-6
    assert last.spec["recipe"]["weight_decay"] == 1e-8


def test_hard_labels_do_not_wait_for_an_annotator(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    hard = next(row.run for row in study.tables["ablation_annotators"].rows if row.name == "hard_labels")
    assert hard.labels is None
    assert hard.spec["labels"] is None


def test_sizes_in_the_catalogue_are_the_models_own(raw_config: Raw) -> None:
    """config.yaml states LV-ViT's sizes for caps; they must be those of the architecture itself."""
    from tokenlabel.models.lvvit import LVVIT_PRESETS

    for name, preset in LVVIT_PRESETS.items():
        for key, value in raw_config["models"][name]["settings"].items():
            assert (tuple(value) if isinstance(value, list) else value) == preset[key], f"{name}.{key}"


@pytest.mark.parametrize(("k", "stored", "tail"), [("all", 1000, False), (5, 5, True), (2000, 1000, False)])
def test_no_more_classes_are_stored_than_there_are_and_no_tail_of_none(
    raw_config: Raw, k: Any, stored: int, tail: bool
) -> None:
    raw_config["labels"].update(k=k, tail=True)
    jobs = Study.plan(raw_config).labels.values()
    assert jobs
    assert {(job.spec["labels"]["k"], job.spec["labels"]["tail"]) for job in jobs} == {(stored, tail)}


@pytest.mark.parametrize("change", [{"flip": True}, {"scales": [0.75, 1.0, 1.25]}, {"k": 10}])
def test_options_that_change_the_maps_make_other_labels(raw_config: Raw, change: Raw) -> None:
    before = Study.plan(raw_config).labels.keys()
    raw_config["labels"].update(change)
    assert not before & Study.plan(raw_config).labels.keys()


def test_scales_that_give_no_whole_pixels_are_refused(raw_config: Raw) -> None:
    raw_config["labels"]["scales"] = [1.0, 1.1]
    with pytest.raises(ConfigError, match=r"labels.*scales.*633\.6, not whole pixels") as caught:
        Study.plan(raw_config)
    assert "\n" not in str(caught.value)


def test_tables_of_other_data_sets_may_stay_in_the_catalogue(raw_config: Raw) -> None:
    """A study of 102 classes with hard labels selects its own table; the paper's, for 1,000 classes, are left alone."""
    raw_config["dataset"].update(num_classes=102, class_map=None)
    raw_config["experiments"]["mine"] = {
        "question": "?", "paper": "none", "seeds": [0], "set": {"train.supervision": "hard"},
        "grid": {"model": ["lvvit_t", "lvvit_s"]},
    }  # fmt: skip
    raw_config["select"] = {"annotators": [], "experiments": ["mine"]}
    study = Study.plan(raw_config)
    assert len(study.selected_runs) == 2
    assert study.used_labels == []
    assert "main" not in study.tables
    raw_config["select"]["experiments"] = ["main"]
    with pytest.raises(ConfigError, match="knows 1000 classes"):
        Study.plan(raw_config)
