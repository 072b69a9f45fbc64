from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from timm.models import PretrainedCfg

from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.models import (
    ModelConfig,
    TokenModel,
    create_model,
    describe_model,
    read_model_config,
    write_model_config,
)

Make = Callable[..., TokenModel]
NAMES = ("a", "b", "é", "d e", "5")


@pytest.fixture
def config(tiny: Make) -> ModelConfig:
    settings = {
        "depth": 2,
        "width": 24,
        "heads": 2,
        "stem_kernels": (7, 8),
        "stem_strides": (2, 8),
        "stochastic_depth": 0.1,
    }
    model = tiny(**settings)
    return describe_model(model, "lvvit_s", settings, NAMES, crop=0.9, descriptions={"a": "an ant"})


def test_what_was_written_is_read_and_makes_the_same_model(config: ModelConfig, tmp_path: Path) -> None:
    write_model_config(tmp_path, config)
    read = read_model_config(tmp_path)
    assert read == config
    assert (read.classes, read.descriptions, read.heads) == (NAMES, {"a": "an ant"}, ("head", "aux_head"))
    assert "stochastic_depth" not in read.settings
    model, again = config.create(), read.create()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}
    assert again.token_score_weight == 0.5


def test_the_layout_is_timms(config: ModelConfig) -> None:
    document = config.document()
    assert document["architecture"] == "lvvit_s"
    assert (document["num_classes"], document["num_features"]) == (5, 24)
    assert document["model_args"]["img_size"] == 64
    cfg = PretrainedCfg(**document["pretrained_cfg"])  # refuses a key that timm does not have
    assert (cfg.input_size, cfg.crop_pct, cfg.classifier) == ([3, 64, 64], 0.9, ["head", "aux_head"])
    backbone = create_model("timm/resnet18", 5, 64)
    document = describe_model(backbone, "timm/resnet18", {}, NAMES, crop=0.9).document()
    assert (document["architecture"], document["num_features"]) == ("token_model", 512)
    assert document["model_args"] == {"backbone": "resnet18", "img_size": 64, "token_score_weight": 0.5}
    assert document["pretrained_cfg"]["classifier"] == ["backbone.fc", "token_head"]


def test_normalisation_is_that_of_the_file(config: ModelConfig, tmp_path: Path) -> None:
    document = config.document()
    document["pretrained_cfg"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    model = read_model_config(tmp_path).create()
    assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("architecture"), "lacks 'architecture'"),
        (without("model_args"), "lacks 'model_args'"),
        (without("pretrained_cfg"), "lacks 'pretrained_cfg'"),
        (without("label_names"), "lacks 'label_names'"),
        (lambda d: d.update(architecture="vit_small_patch16_224"), "architecture 'vit_small_patch16_224', legal are lvvit_t"),
        (lambda d: d.update(architecture="token_model"), "lacks 'backbone'"),
        (lambda d: d.update(num_classes=0), "num_classes: Input should be greater than or equal to 1"),
        (lambda d: d.update(num_classes=6), "5 label_names for 6 classes"),
        (lambda d: d.update(label_names="abcde"), "classes: Input should be a valid tuple"),
        (lambda d: d["pretrained_cfg"].update(crop_pct=90), "crop: Input should be less than or equal to 1"),
        (lambda d: d["pretrained_cfg"].update(mean=[0.5]), "mean.1: Field required"),
        (lambda d: d["pretrained_cfg"].update(interpolation="lanczos"), "interpolation: Input should be 'bilinear' or 'bicubic'"),
        (lambda d: d.update(pretrained_cfg=[]), "list indices"),
    ],
)  # fmt: skip
def test_a_foreign_or_changed_file_is_one_line(
    change: Callable[[dict[str, Any]], None], words: str, config: ModelConfig, tmp_path: Path
) -> None:
    document = config.document()
    change(document)
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"config\.json: describes no model of this package") as caught:
        read_model_config(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", None])
def test_a_damaged_or_missing_file_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (damaged|no such file|describes no model)") as caught:
        read_model_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_setting_of_another_version_is_refused_with_the_legal_ones(config: ModelConfig, tmp_path: Path) -> None:
    document = config.document()
    document["model_args"]["gates"] = 3
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"unknown setting 'gates'.*depth"):
        read_model_config(tmp_path).create()
