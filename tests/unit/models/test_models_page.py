"""docs/models.md: its code runs and gives what its comments say, and its settings are those that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.segment_config import Head, Levels
from tokenlabel.models.lvvit import LVVIT_PRESETS
from tokenlabel.models.t2t import T2T_PRESETS
from tokenlabel.models.timm_backbones import TIMM_SETTINGS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def test_code_gives_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, found)
    assert "('head', 'aux_head') ('pos_embed',)" in capsys.readouterr().out
    assert found["output"].class_logits.shape == found["logits"].shape == (2, 20)
    assert found["output"].token_logits.shape == found["both"].token_logits.shape == (2, 16, 20)
    assert found["output"].grid == (4, 4)
    assert found["maps"].shape == (2, 20, 4, 4)
    assert found["small"].grid == (6, 6)
    assert found["training"].logits.shape == (2, 11, 12, 12)
    assert found["training"].auxiliary.shape == (2, 11, 6, 6)
    assert found["pixels"].shape == (2, 11, 70, 50)
    assert found["scene"].shape == (11, 150, 200)


def test_keys_of_heads_are_those_that_there_are() -> None:
    (table,) = re.findall(r"\| key \| meaning \|.*?\n\n", PAGE, re.DOTALL)
    told = set(re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    keys = set(Head.model_fields)
    levels = {f"levels.{key}" for key in Levels.model_fields}
    assert told == keys - {"kind", "levels"} | levels


def test_settings_are_those_that_there_are() -> None:
    (table,) = re.findall(r"\| setting \|.*?\n\n", PAGE, re.DOTALL)
    told: dict[str, set[str]] = {"LV-ViT": set(), "T2T-ViT": set(), "timm": set()}
    for names, families in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE):
        for family, settings in told.items():
            if family in families or families == "all":
                settings |= set(re.findall(r"`(\w+)`", names))
    assert told["LV-ViT"] == set(LVVIT_PRESETS["lvvit_s"])
    assert told["T2T-ViT"] == set(T2T_PRESETS["t2t_vit_14"])
    assert told["timm"] == set(TIMM_SETTINGS)
