"""Named recipes against the paper's Table 7 and appendix A, and what a recipe comes to on a machine."""

from __future__ import annotations

from typing import Any

import pytest

from tokenlabel.core.config import Config, load_config
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.recipes import Schedule, check_schedule

IMAGENET = 1281167
# Table 7 by column: supervision, highest rate at batch 1024, and whether Mixup may be used
TABLE_7 = {
    "paper_text_standard": ("hard", 1.0e-3, True),
    "paper_text_relabel": ("relabel", 1.0e-3, False),
    "paper_text": ("token", 1.6e-3, False),
    "released_code": ("token", 1.6e-3, False),
}


@pytest.fixture
def config(raw_config: dict[str, Any]) -> Config:
    return load_config(raw_config)


@pytest.mark.parametrize("name", TABLE_7)
def test_table_7(config: Config, name: str) -> None:
    recipe = config.recipes[name]
    supervision, rate, mixup = TABLE_7[name]
    assert recipe.supervision == supervision
    assert Schedule.of(recipe, config.machine, IMAGENET).learning_rate == pytest.approx(rate)
    assert ("mixup" in recipe.mix) == mixup
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay, recipe.warmup_epochs) == (300, 1024, 0.05, 5)
    assert (recipe.mixup_alpha, recipe.erasing_probability) == (0.8, 0.25)
    assert (recipe.randaugment_magnitude, recipe.randaugment_std) == (9, 0.5)


def test_the_text_and_the_released_code_differ_where_they_are_known_to(config: Config) -> None:
    code, text = (config.recipes[name].model_dump() for name in ("released_code", "paper_text"))
    assert {key: (code[key], text[key]) for key in code if code[key] != text[key]} == {
        "min_learning_rate": (1e-5, 0.0), "cooldown_epochs": (10, 0), "ema_decay": (0.99992, None),
        "label_smoothing": (0.1, 0.0), "class_target": ("map", "label"), "token_weight": (1.0, 0.5),
        "interpolation": ("random", "bicubic"), "erasing_mode": ("pixel", "const"),
    }  # fmt: skip
    assert config.defaults.recipe == "released_code"
    assert code["geometry"] == text["geometry"] == "exact"


@pytest.mark.parametrize(
    ("name", "base", "last_rate"), [("finetune", "released_code", 5e-6), ("paper_text_finetune", "paper_text", 0.0)]
)
def test_appendix_a(config: Config, name: str, base: str, last_rate: float) -> None:
    recipe, default = config.recipes[name], config.recipes[base]
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (30, 512, 1e-8)
    assert Schedule.of(recipe, config.machine, IMAGENET).learning_rate == 5e-6
    assert recipe.min_learning_rate == last_rate
    # "other hyper-parameters are set the same as default": token labels and MixToken are kept
    changed = {key for key, value in recipe.model_dump().items() if value != getattr(default, key)}
    assert changed <= {
        "epochs", "batch_size", "learning_rate", "learning_rate_batch", "weight_decay", "min_learning_rate", "cooldown_epochs",
        "ema_decay",
    }  # fmt: skip
    assert (recipe.supervision, recipe.mix) == ("token", "mixtoken")


def test_no_recipe_mixes_photographs_by_mixup_where_tokens_have_labels(config: Config) -> None:
    for name, recipe in config.recipes.items():
        assert recipe.supervision == "hard" or "mixup" not in recipe.mix, name


def test_the_rate_follows_the_batch_that_is_there(config: Config) -> None:
    recipe, machine = config.recipes["released_code"], config.machine
    schedule = Schedule.of(recipe, machine, 100)  # photographs
    assert schedule == Schedule(batch_size=100, micro_batches=1, steps_per_epoch=1, learning_rate=1e-3 * 100 / 640)
    assert Schedule.of(recipe, machine, IMAGENET).steps_per_epoch == 1251
    alone = recipe.model_copy(update={"learning_rate_batch": None})
    assert Schedule.of(alone, machine, 100).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [
        (
            1024,
            128,
            3,
            [
                "batch_size 1024",
                "micro-batches of 128",
                "makes 8",
                "3 processes",
                "micro_batch 114 or 171",
                "768 or 1152",
            ],
        ),
        (
            24,
            24,
            2,
            ["makes 1 a step", "2 processes", "machine.micro_batch 12", "batch_size 48", "machine.processes 1"],
        ),
        (4, 2, 8, ["makes 2", "8 processes", "Nearest that fit: batch_size 16", "machine.processes 2"]),
        (600, 100, 4, ["makes 6", "400 or 800", "machine.processes 3"]),
    ],
)
def test_a_batch_that_processes_cannot_share(
    config: Config, batch: int, micro: int, processes: int, expected: list[str]
) -> None:
    recipe = config.recipes["released_code"].model_copy(update={"batch_size": batch, "learning_rate_batch": None})
    machine = config.machine.model_copy(update={"micro_batch": micro, "processes": processes})
    with pytest.raises(ConfigError) as caught:
        check_schedule(recipe, machine, "run x")
    for part in expected:
        assert part in str(caught.value)
    if "machine.micro_batch" in str(caught.value).split("Nearest")[1]:  # what is proposed works
        proposed = str(caught.value).rsplit("machine.micro_batch ", 1)[1].split(";")[0].split(" or ")
        for micro_batch in map(int, proposed):
            check_schedule(recipe, machine.model_copy(update={"micro_batch": micro_batch}), "run x")


@pytest.mark.parametrize(("micro", "processes"), [(128, 8), (256, 4), (100, 11), (1, 1024)])
def test_batches_that_processes_share(config: Config, micro: int, processes: int) -> None:
    machine = config.machine.model_copy(update={"micro_batch": micro, "processes": processes})
    check_schedule(config.recipes["released_code"], machine, "run x")


@pytest.mark.parametrize("key", ["min_learning_rate", "warmup_learning_rate"])
def test_a_schedule_that_would_rise_is_refused(config: Config, key: str) -> None:
    recipe = config.recipes["released_code"].model_copy(update={"batch_size": 64, key: 2e-4})
    with pytest.raises(
        ConfigError, match=rf"run x: {key} 0.0002 is above the learning rate 0.0001 \(0.001 x batch_size 64 / 640\)"
    ):
        check_schedule(recipe, config.machine, "run x")
