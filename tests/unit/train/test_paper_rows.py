"""Tables 2 and 3, Figure 4 and our geometry ablation are configuration only: each row says what the paper's says, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.config import load_config
from tokenlabel.core.recipes import scaled_rate
from tokenlabel.core.study import Study
from tokenlabel.train.job import train_run

from .conftest import LABEL_SPEC, Workplace

# per row: supervision, mixing, CutOut, RandAugment, share of tokens, highest rate at batch 1024 (Table 7)
PAPER: dict[str, dict[str, tuple[str, str, bool, bool, float, float]]] = {
    "ablation_supervision": {
        "mixtoken_token": ("token", "mixtoken", True, True, 1.0, 1.6e-3),
        "mixtoken_relabel": ("relabel", "mixtoken", True, True, 1.0, 1e-3),
        "cutmix_relabel": ("relabel", "cutmix", True, True, 1.0, 1e-3),
        "mixtoken_hard": ("hard", "mixtoken", True, True, 1.0, 1e-3),
        "cutmix_hard": ("hard", "cutmix", True, True, 1.0, 1e-3),
    },
    "ablation_augmentation": {
        "all_but_mixup": ("token", "mixtoken", True, True, 1.0, 1.6e-3),
        "without_mixtoken": ("token", "none", True, True, 1.0, 1.6e-3),
        "with_mixup": ("token", "mixtoken_mixup", True, True, 1.0, 1.6e-3),
        "without_cutout": ("token", "mixtoken", False, True, 1.0, 1.6e-3),
        "without_randaugment": ("token", "mixtoken", True, False, 1.0, 1.6e-3),
    },
    "ablation_participation": {
        f"{model}_participation_{share}".replace(".", "_"): ("token", "mixtoken", True, True, share, 1.6e-3)
        for model in ("lvvit_s", "lvvit_m")
        for share in (0.2, 0.4, 0.6, 0.8, 1.0)
    },
    "ablation_annotators": {
        "hard_labels": ("hard", "mixtoken", True, True, 1.0, 1e-3),
        **dict.fromkeys(
            ["nfnet_f6", "resnest269e", "efficientnet_l2", *(f"efficientnet_b{size}" for size in range(3, 9))],
            ("token", "mixtoken", True, True, 1.0, 1.6e-3),
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("table", PAPER)
def test_a_row_resolves_to_what_the_paper_says(raw_config: dict[str, Any], table: str) -> None:
    rows = {row.name: row.run.spec for row in Study.plan(raw_config).tables[table].rows}
    found = {}
    for name, spec in rows.items():
        recipe = load_config(raw_config).recipes["released_code"].model_validate(spec["recipe"])
        found[name] = (
            recipe.supervision, recipe.mix, recipe.erasing_probability == 0.25, recipe.randaugment_count == 2,
            recipe.participation, pytest.approx(scaled_rate(recipe, 1024)),
        )  # fmt: skip
        assert (spec["labels"] is None) == (recipe.supervision == "hard")
        assert (recipe.erasing_probability, recipe.randaugment_count) in {(0.25, 2), (0.0, 2), (0.25, 0)}
    assert found == PAPER[table]


def test_the_ablation_of_geometry_differs_in_geometry_alone(raw_config: dict[str, Any]) -> None:
    study = Study.plan(raw_config)
    specs = {row.name: row.run.spec for row in study.tables["ablation_geometry"].rows}
    assert specs["exact"] == next(row.run.spec for row in study.tables["main"].rows if row.name == "lvvit_s")
    assert specs["released"]["recipe"] == specs["exact"]["recipe"] | {"geometry": "released"}
    assert specs["released"] | {"recipe": {}} == specs["exact"] | {"recipe": {}}


def paper_rows() -> list[tuple[str, str]]:
    """The rows of Tables 2 and 3 and Fig. 4, and ours; of Fig. 4 those that are not the same but for labels or depth."""
    rows = [
        (table, row)
        for table in PAPER
        for row in PAPER[table]
        if not row.startswith(("efficientnet", "resnest", "lvvit_m"))
    ]
    return [*rows, ("ablation_geometry", "exact"), ("ablation_geometry", "released")]


@pytest.mark.parametrize(("table", "row"), paper_rows(), ids=[row for _, row in paper_rows()])
def test_a_row_trains(raw_config: dict[str, Any], workplace: Workplace, tmp_path: Path, table: str, row: str) -> None:
    raw_config["caps"] = {"epochs": 1, "batch_size": 20, "depth": 1, "width": 48, "image_px": 64}
    planned = Study.plan(raw_config).tables[table]
    run = next(found.run for found in planned.rows if found.name == row)
    spec = run.spec | {"labels": LABEL_SPEC if run.labels else None}
    labels = workplace.labels if run.labels else None
    marker = train_run(
        spec, workplace.machine, manifests=workplace.manifests, labels_folder=labels, start_folder=None, seed=0,
        done=tmp_path / "done.json",
    )  # fmt: skip
    assert marker["steps_per_epoch"] == 1
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if "step" not in line]
    assert 3 < line["class_loss"] < 12
    assert ("token_loss" in line) == (spec["recipe"]["supervision"] == "token")
    assert 3 < line.get("token_loss", 5) < 12
