"""`tokenlabel train --explain`: what a run would use, where it comes from, and how it differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.cli import main
from tokenlabel.core.config import Recipe
from tokenlabel.core.files import write_json
from tokenlabel.core.study import Study
from tokenlabel.train.explain_command import show_value

OVERLAY = """
caps: {batch_size: 512}
dataset: {train_images: 51200}
machine: {micro_batch: 64, processes: 4}
recipes:
  released_code:
    mix: cutmix   # a test of mine
  mine: {epochs: 7}
"""


@pytest.fixture(autouse=True)
def _checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", "--explain", *arguments]) == 0
    return capsys.readouterr().out


def test_the_released_code_against_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--recipe", "released_code")
    lines = text.splitlines()
    assert lines[0] == "recipe released_code, model lvvit_s at 224 px, stochastic depth 0.1, 1,281,167 photographs"
    assert "0.0016 = 0.001 x 1024 / 640 (it follows batch_size" in lines[1]
    assert "5 epochs (6,255 steps) from 1e-06" in lines[2]
    assert "cosine to 1e-05 at epoch 300, 10 epochs of cool-down; 387,810 steps in all, 1,251 an epoch" in lines[3]
    assert "8 micro-batches of at most 128, 8 for each of machine.processes 1" in lines[4]
    values = text.split("\n\n")[1].splitlines()
    keys = [line.split()[0] for line in values if not line.startswith(" ")]
    assert keys == ["key", *Recipe.model_fields]
    source, meaning = values[0].index("source"), values[0].index("meaning")
    assert {line[source - 2 : source] for line in values} == {"  "}  # columns are aligned
    assert {line[meaning - 1 : meaning] for line in values} <= {" ", ""}
    assert max(map(len, lines)) <= 120
    (beta,) = [line for line in values if line.startswith("token_weight")]
    assert [part.strip() for part in (beta[24:source], beta[source:meaning], beta[meaning:])] == [
        "1.0", "released code (section 3.2: 0.5)", "beta of equation 3, >= 0",
    ]  # fmt: skip
    differing = text.split("\n\n")[2].splitlines()
    assert differing[0] == f"differs from paper_text in 8 of {len(Recipe.model_fields)} values:"
    assert any(line.split()[:3] == ["token_weight", "1.0", "0.5"] and "section 3.2" in line for line in differing)


def test_an_overlay_and_its_caps_are_named_by_file_and_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, raw_config: dict[str, Any]
) -> None:
    overlay = tmp_path / "config.yaml"  # the name alone does not make it the manual
    overlay.write_text(OVERLAY.replace("{epochs: 7}", json.dumps(raw_config["recipes"]["finetune"] | {"epochs": 7})))
    found = json.loads(shown(capsys, "--json", "--model", "lvvit_l", "--configfile", str(overlay)))
    settings = {setting["key"]: setting for setting in found["settings"]}
    assert settings["mix"]["value"] == "cutmix"
    assert settings["mix"]["source"] == f"{overlay}:7: a test of mine"
    assert settings["batch_size"]["value"] == 512
    assert settings["batch_size"]["source"] == f"caps.batch_size, {overlay}:2"
    assert settings["epochs"]["source"] == "Table 7"
    assert found["image_px"] == 288
    assert found["schedule"] == {
        "batch_size": 512, "micro_batches": 8, "steps_per_epoch": 100, "learning_rate": pytest.approx(8e-4),
    }  # fmt: skip
    assert "mix" in found["against"]["differs"]
    mine = json.loads(shown(capsys, "--json", "--recipe", "mine", "--configfile", str(overlay)))
    assert {setting["source"] for setting in mine["settings"]} == {f"{overlay}:8"}
    assert "2 for each of machine.processes 4" in shown(capsys, "--configfile", str(overlay))


def test_what_a_supervision_does_not_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "--recipe", "paper_text_standard", "--json"))
    settings = {setting["key"]: setting for setting in found["settings"]}
    assert (settings["token_weight"]["value"], settings["token_weight"]["source"]) == (0.0, "unused: supervision hard")
    assert settings["mix"]["source"].startswith("Table 7 lists Mixup 0.8")


def test_a_runs_spec_is_explained_by_the_nearest_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, raw_config: dict[str, Any]
) -> None:
    rows = {row.name: row.run for row in Study.plan(raw_config).tables["main"].rows}
    spec = json.loads(json.dumps(rows["lvvit_s_384"].spec))
    spec["recipe"]["participation"] = 0.5
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    text = shown(capsys, "--spec", str(tmp_path / "spec.json"))
    assert text.startswith(f"finetune of {tmp_path}/spec.json, nearest recipe finetune, model lvvit_s at 384 px")
    assert "the run's own; finetune: 1.0" in text
    assert "differs from paper_text_finetune in" in text
    assert "5e-06, whatever the batch" in text
    assert "constant to epoch 30" in text


def test_a_runs_photographs_are_those_of_its_manifest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, raw_config: dict[str, Any]
) -> None:
    """Not config.yaml's, whose overlays nobody gave."""
    raw_config["dataset"] |= {"name": "mine", "train_images": 4096}
    raw_config["caps"]["batch_size"] = 128
    study = Study.plan(raw_config)
    run = study.tables["main"].rows[0].run
    path = tmp_path / run.document[0]
    write_json(path, run.spec)
    text = shown(capsys, "--spec", str(path))
    assert (
        "1,281,167 photographs (of imagenet1k: those of mine are not known here; give --configfile, its overlays)"
        in text
    )
    write_json(tmp_path / study.data.marker, {"splits": {"train": {"images": 4095}}})
    text = shown(capsys, "--spec", str(path))
    assert ", 4,095 photographs\n" in text
    assert "31 an epoch" in text
    write_json(path, run.spec | {"recipe": run.spec["recipe"] | {"epochs": "300"}})
    assert main(["train", "--explain", "--spec", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: recipe.epochs: '300' is not legal" in line


def test_a_batch_that_processes_cannot_share_is_said_after_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "o.yaml").write_text("machine: {processes: 3}")
    assert main(["train", "--explain", "--configfile", str(tmp_path / "o.yaml")]) == 2
    shown, said = capsys.readouterr()
    assert "differs from paper_text" in shown
    assert "error: recipe released_code, model lvvit_s: batch_size 1024 in micro-batches of 128" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "relesed_code"], ["unknown recipe 'relesed_code'", "'released_code'", "paper_text_relabel"]),
        (["--against", "x"], ["unknown recipe 'x'"]),
        (["--model", "lvit_s"], ["unknown model 'lvit_s'", "'lvvit_s'"]),
        (["--spec", "/no/such/spec.json"], ["/no/such/spec.json", "missing"]),
        (["--spec", "LABELS"], ["no spec of a training"]),
        (["--configfile", "/no/overlay.yaml"], ["/no/overlay.yaml", "cannot be read"]),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    (tmp_path / "labels.json").write_text('{"stage": "annotate"}')
    arguments = [str(tmp_path / "labels.json") if word == "LABELS" else word for word in arguments]
    assert main(["train", "--explain", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in expected:
        assert part in line


def test_values_are_read_at_a_glance(raw_config: dict[str, Any]) -> None:
    operations = raw_config["recipes"]["released_code"]["randaugment_operations"]
    assert show_value(operations) == "all 15"
    assert show_value(operations[:-2]) == "all but TranslateXRel, TranslateYRel"
    assert [show_value(value) for value in ([], None, 1e-5, [0.08, 1.0], "map", 300)] == [
        "none", "null", "1e-05", "[0.08, 1.0]", "map", "300",
    ]  # fmt: skip
