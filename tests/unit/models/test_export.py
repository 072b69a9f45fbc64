"""Exports are loaded again by the programs they are made for: tokenlabel, timm, onnxruntime."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tokenlabel.cli import main
from tokenlabel.core.errors import CheckpointError, OutputError
from tokenlabel.models import (
    TokenModel,
    create_model,
    describe_model,
    export,
    load_model,
    read_metadata,
    read_model_config,
    save_weights,
    write_model_config,
)
from tokenlabel.models.export import ExportError, export_model

from .test_checkpoints import randomised

Make = Callable[..., TokenModel]
CLASSES = ("cat", "dog", "bird", "owl", "élan")
TINY = {"depth": 2, "width": 24, "heads": 2}


def write_run(
    folder: Path, name: str = "lvvit_s", image_px: int = 64, settings: dict[str, Any] | None = None
) -> TokenModel:
    """A run's folder as training leaves it, of a model whose every weight and statistic is its own."""
    settings = TINY if settings is None else settings
    torch.manual_seed(0)
    model = create_model(name, len(CLASSES), image_px, **settings)
    with torch.no_grad():
        for entry, value in model.state_dict().items():
            if entry.endswith("running_mean"):
                value.normal_(std=0.1)
            elif entry.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.add_(torch.randn(value.shape) * 0.02)
    save_weights(model, folder / "model.safetensors", {"spec": "{}", "seed": "0"})
    write_model_config(folder, describe_model(model, name, settings, CLASSES, crop=0.875))
    return model.eval()


def register_with_timm() -> None:
    """The package does it itself where its registry is there; else as that does."""
    if timm.is_model("lvvit_s") and timm.is_model("token_model"):
        return
    from timm.models import build_model_with_cfg, register_model

    def entry(name: str) -> Callable[..., TokenModel]:
        def construct(
            num_classes: int, img_size: int, in_chans: int = 3, backbone: str = "", **settings: Any
        ) -> TokenModel:
            model = create_model(f"timm/{backbone}" if backbone else name, num_classes, img_size, **settings)
            model.num_features = 1
            return model

        def make(pretrained: bool = False, **arguments: Any) -> TokenModel:
            arguments.setdefault("num_classes", arguments["pretrained_cfg"]["num_classes"])
            return build_model_with_cfg(construct, name, pretrained, **arguments)

        make.__name__, make.__module__ = name, "timm.models.registered_in_a_test"
        return make

    sys.modules.setdefault("timm.models.registered_in_a_test", type(sys)("timm.models.registered_in_a_test"))
    for name in ("lvvit_s", "t2t_vit_14", "token_model"):
        register_model(entry(name))


@pytest.mark.parametrize(
    ("name", "image_px", "settings"),
    [
        ("lvvit_s", 64, {**TINY, "residual_scale": 1.5, "token_score_weight": 0.25, "stem_kernels": (7, 8),
                         "stem_strides": (2, 8)}),
        ("t2t_vit_14", 64, TINY),
        ("timm/resnet18", 64, {}),
        ("timm/vit_tiny_patch16_224", 96, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_tokenlabel_and_timm_load_a_folder_to_the_same_bits(
    name: str, image_px: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    register_with_timm()
    model = write_run(tmp_path / "run", name, image_px, settings)
    export_model(load_model(tmp_path / "run"), tmp_path / "out")
    images = torch.randn(2, 3, image_px, image_px)
    for folder in (tmp_path / "run", tmp_path / "out"):
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        loaded = [load_model(folder).model, theirs]
        with torch.inference_mode():
            expected = model(images)
            assert all(torch.equal(other(images), expected) for other in loaded)
    data = timm.data.resolve_data_config(model=theirs)
    assert data["input_size"] == (3, image_px, image_px)
    assert (data["crop_pct"], data["interpolation"]) == (0.875, "bicubic")
    assert tuple(data["mean"]) == model.mean
    assert tuple(theirs.pretrained_cfg["label_names"]) == CLASSES


def test_an_export_says_what_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    loaded = load_model(tmp_path / "run", image_px=96)
    export_model(loaded, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = load_model(tmp_path / "out")
    assert again.classes == CLASSES
    assert again.model.pos_embed.shape == (1, 37, 24)
    assert again.config == loaded.config
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for words in ("lvvit_s, 5 classes, 96 px", "local-dir:", "load_model", "0.875 of the shorter side"):
        assert words in readme
    assert "onnx" not in readme
    metadata = read_metadata(tmp_path / "out" / "model.safetensors")
    assert (metadata["source"], len(metadata["source_sha256"]), metadata["seed"]) == ("model.safetensors", 64, "0")


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    (tmp_path / "file").write_text("mine")
    for place in ("run", "file"):
        with pytest.raises(OutputError, match=f"{place}: exists and is no export"):
            export_model(loaded, tmp_path / place)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "out").mkdir()
    export_model(loaded, tmp_path / "out")
    export_model(load_model(tmp_path / "run", image_px=96), tmp_path / "out")
    assert read_model_config(tmp_path / "out").image_px == 96
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no export"):
        export_model(loaded, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out", "run"]


def onnx_logits(folder: Path, images: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["class_logits", "token_logits"], {"images": images})


def check_onnx(folder: Path, model: TokenModel) -> None:
    images = torch.randn(5, 3, model.image_px, model.image_px)
    with torch.inference_mode():
        expected = model(images), model.forward_tokens(images).token_logits
    for found, wanted in zip(onnx_logits(folder, images.numpy()), expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted.numpy()).max() < 1e-4


@pytest.mark.parametrize("name", ["lvvit_s", pytest.param("t2t_vit_14", marks=pytest.mark.campaign)])
def test_onnx_gives_torchs_logits_for_any_batch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model = write_run(tmp_path / "run", name)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--onnx"]) == 0
    assert "largest difference of a logit" in capsys.readouterr().err
    check_onnx(tmp_path / "out", model)
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert tuple(facts["classes"]) == CLASSES
    assert (facts["grid"], facts["crop"]) == ([4, 4], 0.875)
    assert "InferenceSession" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "image_px", "settings"),
    [
        ("lvvit_t", 224, {}), ("lvvit_s", 384, {}), ("t2t_vit_14", 224, {}),
        ("t2t_vit_14", 64, {**TINY, "token_module": "transformer"}), ("timm/deit_tiny_patch16_224", 224, {}),
        ("timm/deit_tiny_distilled_patch16_224", 224, {}), ("timm/resnet18", 224, {}), ("timm/mixer_s16_224", 224, {}),
        ("timm/resnest50d", 224, {}), ("timm/volo_d1_224", 224, {}), ("timm/swin_tiny_patch4_window7_224", 224, {}),
        ("timm/convnext_tiny", 224, {}),
    ],
)  # fmt: skip
def test_onnx_of_whole_models(name: str, image_px: int, settings: dict[str, Any], tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", name, image_px, settings)
    export_model(load_model(tmp_path / "run"), tmp_path / "out", onnx=True)
    check_onnx(tmp_path / "out", model)


class Unlike(torch.nn.Module):
    """What the exporter sees is not what torch computes: the situation that the check is for."""

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.forward_tokens(images)
        shift = 1e-3 if torch.compiler.is_exporting() else 0.0
        return output.class_logits + shift, output.token_logits


def test_onnx_of_other_numbers_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", settings={**TINY, "depth": 1})
    monkeypatch.setattr(export, "_Logits", Unlike)
    with pytest.raises(ExportError, match=r"differ from torch's by 1\.0e-03, more than 1e-04"):
        export_model(load_model(tmp_path / "run"), tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Inexpressible(Unlike):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model.forward_tokens(images)
        if output.class_logits.sum() > 0:  # control flow on values
            return output.class_logits, output.token_logits
        return -output.class_logits, output.token_logits


def test_what_onnx_cannot_express_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", settings={**TINY, "depth": 1})
    monkeypatch.setattr(export, "_Logits", Inexpressible)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--onnx"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "lvvit_s: torch.onnx cannot express it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_missing_onnx_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'tokenlabel\[onnx\]'"):
        export_model(load_model(tmp_path / "run"), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_published_file_and_chooses_its_weights(tmp_path: Path) -> None:
    plain, averaged = (randomised(create_model("timm/resnet18", 7, 64)) for _ in range(2))
    content = {
        key: {name.removeprefix("backbone."): v for name, v in model.state_dict().items() if "token_head" not in name}
        for key, model in (("state_dict", plain), ("state_dict_ema", averaged))
    }
    torch.save(content, tmp_path / "resnet18.pth.tar")
    for flag, model in (("--ema", averaged), ("--plain", plain)):
        arguments = [str(tmp_path / "resnet18.pth.tar"), str(tmp_path / "out"), "--architecture", "timm/resnet18", flag]
        assert main(["export", *arguments, "--image-px", "64"]) == 0
        loaded = load_model(tmp_path / "out")
        assert (loaded.model.image_px, loaded.model.num_classes, loaded.model.token_score_weight) == (64, 7, 0.0)
        state = loaded.model.state_dict()
        assert torch.equal(state["backbone.fc.weight"], model.state_dict()["backbone.fc.weight"])
    with pytest.raises(CheckpointError, match="weights fit none of lvvit_t"):
        load_model(tmp_path / "resnet18.pth.tar")
