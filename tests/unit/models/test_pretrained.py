"""Pretrained weights: every place they may lie in, nothing executed, and no network said quickly in one line."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tokenlabel.core.config import load_config
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.files import sha256_of
from tokenlabel.models.pretrained import cached_hub_file, hub_file, load_pretrained

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def source(weights: str, **changes: Any) -> dict[str, Any]:
    return {"architecture": "tf_efficientnet_b3.aa_in1k", "weights": weights, "weights_sha256": None,
            "weights_naming": "timm"} | changes  # fmt: skip


@pytest.mark.parametrize("file_name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_folder_as_the_hub_writes_it(file_name: str, absolute: bool, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    if file_name.endswith("safetensors"):
        save_file(STATE, folder / file_name)
    else:
        torch.save(STATE, folder / file_name)
    weights = f"folder:{folder}" if absolute else "folder:snapshot"
    found = load_pretrained(source(weights), Path("/nowhere") if absolute else tmp_path)
    assert found.sha256 == sha256_of(folder / file_name)
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[name], value) for name, value in STATE.items())
    with pytest.raises(CheckpointError, match="the configuration states"):
        load_pretrained(source(weights, weights_sha256="0" * 64), tmp_path)


def test_a_folder_without_weights_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin in .*/none") as caught:
        load_pretrained(source("folder:none"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_legal_in_the_configuration(raw_config: dict[str, Any]) -> None:
    raw_config["annotators"]["nfnet_f6"]["weights"] = "folder:snapshot"
    load_config(raw_config)
    raw_config["annotators"]["nfnet_f6"]["weights"] = "folder:"
    with pytest.raises(ConfigError, match=r"annotators\.nfnet_f6"):
        load_config(raw_config)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_of_training_programs(wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    state: dict[str, Any] = {f"{prefix}{name}": value for name, value in STATE.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "a.pth")
    found = load_pretrained(source("file:a.pth"), tmp_path).state
    assert found.keys() == STATE.keys()
    assert torch.equal(found["weight"], STATE["weight"])


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Malicious(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds more than weights") as caught:
        load_pretrained(source("file:a.pth"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)  # the file does what it threatens
    assert (tmp_path / "ran").exists()


def test_the_papers_nine_by_timms_own_records(raw_config: dict[str, Any]) -> None:
    for name, entry in raw_config["annotators"].items():
        architecture = entry["architecture"]
        assert architecture in timm.list_pretrained(architecture), name
        assert hub_file(architecture) == (f"timm/{architecture}", None, "model.safetensors")


def test_a_name_without_tag_gets_the_repository_of_its_default_tag() -> None:
    assert hub_file("resnet50")[0] == f"timm/resnet50.{timm.get_pretrained_cfg('resnet50').tag}"


@pytest.mark.parametrize("name", ["resnet50.no_such_tag", "no_such_network"])
def test_an_unknown_name_or_tag_is_one_line(name: str) -> None:
    with pytest.raises(CheckpointError, match="Correct the annotator's architecture") as caught:
        hub_file(name)
    assert "\n" not in str(caught.value)


def test_no_network_fails_in_seconds_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def no_name(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    started = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"Fetch model\.safetensors of timm/tf_efficientnet_b3\.aa_in1k .*weights_root"
    ) as caught:
        load_pretrained(source("hub"), Path())
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    assert "Retrying" not in capfd.readouterr().err


def test_a_cached_file_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--tf_efficientnet_b3.aa_in1k"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert cached_hub_file("tf_efficientnet_b3.aa_in1k") is None
    save_file(STATE, snapshot / "model.safetensors")
    assert cached_hub_file("tf_efficientnet_b3.aa_in1k") == snapshot / "model.safetensors"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    assert torch.equal(load_pretrained(source("hub"), Path()).state["weight"], STATE["weight"])
