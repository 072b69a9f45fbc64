"""`tokenlabel annotate --list`: what it says of each annotator, and that it opens no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenlabel.annotate.list_command import describe_annotator
from tokenlabel.cli import main
from tokenlabel.core import overlays
from tokenlabel.core.config import load_config


def test_the_demos_catalogue(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("weights were opened"))
    assert main(["annotate", "--list", "--configfile", "demo/config.yaml"]) == 0
    shown = capsys.readouterr().out
    blocks = {block.split("\n", 1)[0]: block for block in shown.replace("\n    ", "\f").split("\n")}
    nfnet, lite = blocks_of(blocks, "nfnet_f6"), blocks_of(blocks, "efficientnet_lite0")
    assert nfnet["architecture"] == "dm_nfnet_f6.dm_in1k"
    assert "timm/dm_nfnet_f6.dm_in1k" in nfnet["weights"]
    assert nfnet["grid"] == "18x18 at 576 px"
    assert nfnet["paper top-1"] == "86.3 %"
    assert nfnet["licence"] == "apache-2.0"
    assert lite["pixels"] == "mean 0.5/0.5/0.5, std 0.5/0.5/0.5, bicubic"
    assert ", here: /" in lite["weights"]
    assert lite["paper top-1"] == "not printed"


def blocks_of(blocks: dict[str, str], name: str) -> dict[str, str]:
    block = next(text for head, text in blocks.items() if head.split("\f")[0] == name)
    return {line[:14].strip(): line[14:] for line in block.split("\f")[1:]}


def described(raw: dict[str, Any], **changes: Any) -> dict[str, str]:
    raw["annotators"]["nfnet_f6"].update(changes)
    config = load_config(raw)
    return describe_annotator("nfnet_f6", config.annotators["nfnet_f6"], config)


def test_missing_files_unknown_tags_and_unstated_licences_are_said(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["weights_root"] = str(tmp_path)
    assert f"{tmp_path}/a.pth: no such weights file" in described(raw_config, weights="file:a.pth")["weights"]
    (tmp_path / "a.pth").write_bytes(b"never opened")
    assert f"here: {tmp_path}/a.pth" in described(raw_config, weights="file:a.pth")["weights"]
    assert "missing" in described(raw_config, weights="folder:none")["weights"]
    assert "tag" in described(raw_config, architecture="dm_nfnet_f6.typo")["problem"]


def test_a_licence_that_timm_does_not_state(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    unstated = timm.get_pretrained_cfg("dm_nfnet_f6.dm_in1k")
    unstated.license = None
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_, **__: unstated)
    assert described(raw_config)["licence"] == "not stated by timm"


def test_no_configuration_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overlays, "CHECKOUT", tmp_path / "none")
    assert main(["annotate", "list"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no config.yaml in" in lines[0]


def test_a_study_without_its_own_configuration_shows_the_checkouts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", "list"]) == 0
    assert "efficientnet_l2" in capsys.readouterr().out
