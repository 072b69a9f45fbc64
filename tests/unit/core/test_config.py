"""Every mistake in a configuration is one line that names the key, the value, what is legal, and a guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tokenlabel.core.config import load_config
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.study import Study

Raw = dict[str, Any]


def test_the_papers_study_is_valid(raw_config: Raw) -> None:
    config = load_config(raw_config)
    assert len(config.select.annotators) == 9
    assert config.annotators["nfnet_f6"].paper_top1 == 86.3
    assert config.annotators["efficientnet_b3"].paper_top1 == 81.6
    assert config.annotators["efficientnet_l2"].paper_top1 == 88.2
    assert config.annotators["efficientnet_b5"].paper_top1 is None  # not printed in the text


MISTAKES: list[tuple[str, Callable[[Raw], Any], list[str]]] = [
    ("misspelt key", lambda c: c["labels"].update(imagepx=3), ["labels.imagepx", "unknown key", "'image_px'", "shards"]),
    ("misspelt section", lambda c: c.update(dataroot="x"), ["dataroot", "'data_root'"]),
    ("misspelt nested key", lambda c: c["recipes"]["finetune"].update(epoch=3), ["recipes.finetune.epoch", "'epochs'"]),
    ("wrong type", lambda c: c["recipes"]["paper_text"].update(epochs="many"), ["recipes.paper_text.epochs", "'many'", "integer"]),
    ("out of range", lambda c: c["recipes"]["paper_text"].update(participation=1.5), ["participation", "1.5", "less than"]),
    ("unknown mix", lambda c: c["recipes"]["paper_text"].update(mix="cutmixx"), ["mix", "'cutmixx'", "'cutmix'", "mixtoken"]),
    (
        "unknown augmentation",
        lambda c: c["recipes"]["paper_text"].update(randaugment_operations=["Rotat"]),
        ["randaugment_operations", "'Rotat'", "'Rotate'", "ShearX"],
    ),
    ("unknown model", lambda c: c["defaults"].update(model="lvit_s"), ["defaults.model", "'lvit_s'", "'lvvit_s'", "mixer_b"]),
    ("unknown architecture", lambda c: c["models"]["lvvit_s"].update(architecture="vit"), ["models.lvvit_s.architecture", "'vit'"]),
    ("unknown annotator", lambda c: c["select"].update(annotators=["nfnet_f7"]), ["select.annotators[0]", "'nfnet_f6'"]),
    ("nothing selected", lambda c: c["select"].update(experiments=[]), ["select", "experiments and segmentation are both empty"]),
    ("unknown experiment", lambda c: c["select"].update(experiments=["mian"]), ["select.experiments[0]", "'main'"]),
    ("missing key", lambda c: c.pop("data_root"), ["data_root", "missing"]),
    ("no validation", lambda c: c["dataset"].update(val=None), ["dataset", "val_fraction"]),
    (
        "classes do not match",
        lambda c: c["annotators"]["nfnet_f6"].update(num_classes=21841),
        ["nfnet_f6", "21841", "1000", "imagenet1k"],
    ),
    (
        "misspelt setting of a row",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"train.epoch": 3}),
        ["experiments.main.rows.lvvit_t", "'train.epoch'", "'train.epochs'"],
    ),
    (
        "wrong value in a row",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"train.epochs": "x"}),
        ["experiments.main.rows.lvvit_t.set.train.epochs", "'x'"],
    ),
    (
        "unknown model in a row",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(model="x"),
        ["experiments.main.rows.lvvit_t.model", "'x'", "lvvit_t"],
    ),
    (
        "a list for a model in a row",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(model=["lvvit_s"]),
        ["experiments.main.rows.lvvit_t.model", "['lvvit_s']"],
    ),
    (
        "a resolution between two token grids",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(image_px=230),
        ["experiments.main.rows.lvvit_t.set", "230", "multiple of the token size, 16 px; nearest: 224 or 240"],
    ),
    (
        "a fine-tuning resolution between two token grids",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(finetune_px=[385]),
        ["finetune_px", "385", "16"],
    ),
    (
        "a fine-tuning resolution out of range",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(finetune_px=[99999]),
        ["finetune_px", "99999", "4096"],
    ),
    (
        "a capped resolution between two token grids",
        lambda c: c.update(caps={"image_px": 100}),
        ["caps", "100", "multiple"],
    ),
    (
        "heads that do not divide the width",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"architecture.width": 385}),
        ["architecture", "width 385", "heads"],
    ),
    (
        "an unknown rule of stochastic depth",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"architecture.stochastic_depth_rule": "fix"}),
        ["architecture.stochastic_depth_rule", "'fix'", "Did you mean 'fixed'", "linear"],
    ),
    (
        "a stem of unequal lengths",
        lambda c: c["models"]["lvvit_s"]["settings"].update(stem_strides=[2, 8]),
        ["models.lvvit_s.settings", "equal length"],
    ),
    (
        "a setting of LV-ViT on another model",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"model": "deit_s", "architecture.depth": 3}),
        ["timm/deit_small_patch16_224", "takes no settings"],
    ),
    ("an infinite rate", lambda c: c["recipes"]["finetune"].update(learning_rate=float("inf")), ["learning_rate", "finite"]),
    ("learning rate 0", lambda c: c["recipes"]["finetune"].update(learning_rate=0), ["finetune.learning_rate", "greater than 0"]),
    (
        "a negative learning rate in a row",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"train.learning_rate": -1e-3}),
        ["experiments.main.rows.lvvit_t.set.train.learning_rate", "-0.001", "greater than 0"],
    ),
    ("zero epochs", lambda c: c["recipes"]["finetune"].update(epochs=0), ["recipes.finetune.epochs", "equal to 1"]),
    ("zero epochs of a cap", lambda c: c["caps"].update(epochs=0), ["caps.epochs", "0"]),
    ("an empty batch", lambda c: c["recipes"]["finetune"].update(batch_size=0), ["recipes.finetune.batch_size", "0"]),
    ("an empty micro-batch", lambda c: c["machine"].update(micro_batch=0), ["machine.micro_batch", "0"]),
    ("no process", lambda c: c["machine"].update(processes=0), ["machine.processes", "0"]),
    ("no token takes part", lambda c: c["recipes"]["finetune"].update(participation=0), ["finetune.participation", "than 0"]),
    (
        "no token takes part in a row",
        lambda c: c["experiments"]["ablation_participation"]["grid"].update({"train.participation": [0.0]}),
        ["experiments.ablation_participation", "train.participation", "0.0"],
    ),
    (
        "warm-up as long as the training",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update({"train.epochs": 5}),
        ["experiments.main.rows.lvvit_t.set.train: warmup_epochs 5 must be below epochs 5"],
    ),
    (
        "token labels without an annotator",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(annotator=None),
        ["experiments.main.rows.lvvit_t.annotator", "null", "'token'", "train.supervision: hard"],
    ),
    (
        "a batch that does not divide among processes",
        lambda c: c["machine"].update(processes=16),
        ["batch_size 1024", "machine.micro_batch", "16 processes", "machine.micro_batch 64", "batch_size 2048"],
    ),
    (
        "accumulation that does not fit the processes",
        lambda c: (c["machine"].update(processes=8), c["recipes"]["finetune"].update(batch_size=384)),
        ["-224to384px-", "batch_size 384", "makes 3", "8 processes", "machine.micro_batch 48", "batch_size 1024"],
    ),
    (
        "a floor above the rate of a small batch",
        lambda c: c["recipes"]["released_code"].update(batch_size=4),
        ["min_learning_rate 1e-05", "6.25e-06", "batch_size 4 / 640"],
    ),
    ("a reversed range", lambda c: c["recipes"]["finetune"].update(crop_ratio=[1.3, 0.7]), ["crop_ratio", "smallest"]),
    (
        "more warm-up than training",
        lambda c: c["recipes"]["finetune"].update(warmup_epochs=99),
        ["key recipes.finetune: warmup_epochs 99", "30"],
    ),
    (
        "no operation to choose from",
        lambda c: c["recipes"]["finetune"].update(randaugment_operations=[]),
        ["randaugment_operations", "randaugment_count: 0"],
    ),
    ("one seed for a list", lambda c: c["experiments"]["main"].update(seeds=3), ["seeds: 3 is not legal: input should be a list"]),
    ("a negative seed", lambda c: c["experiments"]["main"].update(seeds=[-1]), ["experiments.main.seeds", "-1"]),
    ("a seed twice", lambda c: c["experiments"]["main"].update(seeds=[0, 0]), ["experiments.main", "must differ"]),
    (
        "an unknown figure",
        lambda c: c["experiments"]["main"].update(figure="foo"),
        ["experiments.main.figure", "'foo'", "participation"],
    ),
    (
        "two rows of one name",
        lambda c: c["experiments"]["main"]["rows"].append({"name": "lvvit_t"}),
        ["experiments.main", "'lvvit_t'", "twice"],
    ),
    (
        "fine-tuning to a lower resolution",
        lambda c: c["experiments"]["main"]["rows"][0]["set"].update(finetune_px=[192]),
        ["finetune_px", "192", "224"],
    ),
    (
        "exact label mass without the tail",
        lambda c: c["recipes"]["released_code"].update(label_mass="exact"),
        ["label_mass", "labels.tail"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_one_line_with_key_value_and_remedy(
    raw_config: Raw, change: Callable[[Raw], Any], expected: list[str]
) -> None:
    change(raw_config)
    with pytest.raises(ConfigError) as caught:
        Study.plan(raw_config)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_a_row_with_hard_labels_needs_no_annotator(raw_config: Raw) -> None:
    raw_config["experiments"]["main"]["rows"][0]["set"].update({"annotator": None, "train.supervision": "hard"})
    assert Study.plan(raw_config).tables["main"].rows[0].run.labels is None


def test_what_no_selected_run_uses_is_not_held_against_the_study(raw_config: Raw) -> None:
    """Fine-tuning's batch suits no eight processes, and no selected table fine-tunes."""
    raw_config["select"]["experiments"] = ["ablation_supervision"]
    raw_config["machine"].update(processes=8)
    raw_config["recipes"]["finetune"]["batch_size"] = 384
    assert Study.plan(raw_config).selected_runs


def test_a_configuration_cannot_be_changed_after_validation(raw_config: Raw) -> None:
    config = load_config(raw_config)
    with pytest.raises(ValueError, match="frozen"):
        config.labels.k = 3  # type: ignore[misc]
