"""docs/training.md: its overlays are planned as they stand there, its commands run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel.cli import main
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "training.md").read_text(encoding="utf-8")


def overlays(page: str) -> list[dict[str, Any]]:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    # a block of rows alone belongs into an experiment
    return [
        block
        if "experiments" in block
        else {"experiments": {"mine": {"question": "?", "paper": "-", "seeds": [0], **block}}}
        for block in blocks
    ]


def test_its_overlays_are_planned(page: str, repository: Path, tmp_path: Path) -> None:
    planned = []
    for overlay in overlays(page):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(overlay))
        raw = read_configuration([repository / "config.yaml", path])
        (name,) = overlay["experiments"]
        raw["select"]["experiments"] = [name]
        stages = [[run.spec["stage"] for run in chain(row.run)] for row in Study.plan(raw).tables[name].rows]
        planned.append(stages)
    assert planned == [
        [["train"]] * 3,
        [["train", "finetune"], ["train", "finetune", "finetune"], ["train", "finetune"]],
        [["finetune"]],
        [["finetune"]],
    ]


def chain(run: Any) -> list[Any]:
    return [*(chain(run.start) if run.start else []), run]


def test_its_commands_run(
    page: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    study = tmp_path / "my_study.yaml"
    study.write_text(
        "recipes: {mine: {}}\n".replace(
            "{}",
            str(yaml.safe_load((repository / "config.yaml").read_text())["recipes"]["finetune"]).replace(
                "None", "null"
            ),
        )
    )
    commands = re.findall(r"^    tokenlabel (train .*--explain.*?)(?:  +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands[:2]:  # the third needs a run
        assert main([str(study) if word == "my_study.yaml" else word for word in command.split()]) == 0
        assert "learning rate" in capsys.readouterr().out
