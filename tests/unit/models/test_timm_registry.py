"""Timm makes, loads, evaluates and trains this package's models by the calls of its own scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config, resolve_input_data_config
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import accuracy, get_state_dict

from tokenlabel.core.errors import ConfigError
from tokenlabel.demo.photographs import write_crops
from tokenlabel.models import TokenModel, TokenOutput, create_model, model_names, save_weights
from tokenlabel.models.model_config import TIMM_ENTRY

TINY = {"depth": 2, "width": 24, "heads": 2}


def write_folder(folder: Path, architecture: str, model: TokenModel, image_px: int, **settings: Any) -> str:
    """A folder as timm's hub files are, written by hand; returns timm's name of it."""
    save_weights(model, folder / "model.safetensors", {})
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "label_names": [f"class{index}" for index in range(model.num_classes)],
        "model_args": {"img_size": image_px, **settings},
        "pretrained_cfg": {
            "input_size": [3, image_px, image_px],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.7,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "classifier": list(model.head_names),
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def test_every_model_is_registered_with_the_study_s_sizes_and_crops(raw_config: dict[str, Any]) -> None:
    assert set(timm.list_models(module="timm_registry")) == {*model_names(), TIMM_ENTRY}
    entries = raw_config["models"].values()
    for entry in entries:
        if entry["architecture"] in model_names():
            cfg = timm.get_pretrained_cfg(entry["architecture"])
            assert cfg is not None
            assert (cfg.input_size[-1], cfg.crop_pct) == (entry["image_px"], entry["eval_crop"]), entry["architecture"]


@pytest.mark.parametrize("name", ["lvvit_t", "t2t_vit_14"])
def test_timm_makes_the_same_model(name: str) -> None:
    theirs = timm.create_model(name, num_classes=5, img_size=64, drop_path_rate=0.2, in_chans=3, **TINY)
    ours = create_model(name, 5, 64, stochastic_depth=0.2, **TINY)
    assert type(theirs) is type(ours)
    assert str(theirs) == str(ours)
    assert theirs.default_cfg["architecture"] == name
    assert theirs.default_cfg["classifier"] == ("head", "aux_head")
    assert theirs.num_features == theirs.head_hidden_size == theirs.get_classifier().in_features == 24
    theirs.reset_classifier(3)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = theirs.eval().forward_features(images)
        torch.testing.assert_close(theirs.forward_head(features), theirs(images))
    assert theirs(images).shape == (2, 3)


def test_a_timm_backbone_with_our_token_head() -> None:
    model = timm.create_model(TIMM_ENTRY, backbone="mixer_s16_224", num_classes=5, img_size=64)
    config = resolve_input_data_config(model)
    assert (config["input_size"], config["mean"], model.image_px) == ((3, 64, 64), (0.5, 0.5, 0.5), 64)
    assert model.pretrained_cfg["classifier"] == model.head_names == ("backbone.head", "token_head")
    own = timm.create_model(TIMM_ENTRY, backbone="resnet18")
    assert (own.image_px, own.num_classes) == (224, 1000)
    assert "hf_hub_id" not in own.pretrained_cfg
    with pytest.raises(ConfigError, match="needs the name of its backbone"):
        timm.create_model(TIMM_ENTRY)
    with pytest.raises(ConfigError, match="Did you mean 'timm/resnet18'"):
        timm.create_model(TIMM_ENTRY, backbone="resnett18")


@pytest.mark.parametrize(
    ("architecture", "name", "settings"),
    [
        ("lvvit_s", "lvvit_s", {**TINY, "stem_kernels": [16], "stem_strides": [16], "token_score_weight": 0.25}),
        (TIMM_ENTRY, "timm/deit_tiny_distilled_patch16_224", {"token_score_weight": 0.25}),
        (TIMM_ENTRY, "timm/volo_d1_224", {}),
        (TIMM_ENTRY, "timm/resnet18", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_loads_whole_at_another_size_and_with_other_classes(
    architecture: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = create_model(name, 5, 64, **settings).eval()
    backbone = {"backbone": name.removeprefix("timm/")} if architecture == TIMM_ENTRY else {}
    source = write_folder(tmp_path, architecture, model, 64, **backbone, **settings)
    loaded = timm.create_model(source, pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images))
    config = resolve_input_data_config(loaded)
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 64, 64), 0.7, "bilinear")
    assert loaded.mean == tuple(config["mean"]) == (0.1, 0.2, 0.3)
    assert loaded.pretrained_cfg["label_names"][4] == "class4"
    if name == "timm/volo_d1_224":
        return
    larger = timm.create_model(source, pretrained=True, img_size=96)
    assert larger.image_px == 96
    if model.position_name in (state := larger.state_dict()):
        expected = create_model(name, 5, 64, **settings)
        expected.load_state_dict(model.state_dict())
        expected.set_image_px(96)
        found, wanted = state[model.position_name], expected.state_dict()[model.position_name]
        assert found.shape == wanted.shape
        # timm's bicubic kernel for its own backbones is a little smoother than ours
        assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.97
    other = timm.create_model(source, pretrained=True, num_classes=3)
    kept, changed = other.state_dict(), model.state_dict()
    for entry, value in changed.items():
        if not entry.startswith(model.head_names):
            assert torch.equal(kept[entry], value), entry
    assert {kept[f"{head}.weight"].shape[0] for head in model.head_names} == {3}


def test_weights_in_memory_load_as_from_timm_s_own_records() -> None:
    torch.manual_seed(0)
    model = create_model("lvvit_t", 5, 32, **TINY)
    overlay = {"state_dict": model.state_dict(), "num_classes": 5, "label_offset": 0}
    loaded = timm.create_model(
        "lvvit_t", pretrained=True, num_classes=5, img_size=32, pretrained_cfg_overlay=overlay, **TINY
    )
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_what_does_not_fit_is_one_line() -> None:
    for words, arguments in {
        "lvvit_t has no weights of its own. Use timm.create_model": {"pretrained": True},
        "lvvit_t: in_chans is 1; a token model takes 3 channels": {"in_chans": 1},
        "lvvit_t: img_size is 64 x 96; a token model takes square images": {"img_size": (64, 96)},
        "lvvit_t: drop_rate is 0.1": {"drop_rate": 0.1},
        "lvvit_t: global_pool is 'avg'": {"global_pool": "avg"},
        "lvvit_t: features_only is not offered": {"features_only": True},
        "image_px is 100": {"img_size": 100},
        "model lvvit_t: unknown setting 'dept'": {"dept": 3},
        "num_classes is 0": {"num_classes": 0},
    }.items():
        with torch.device("meta"), pytest.raises(ConfigError) as caught:
            timm.create_model("lvvit_t", **arguments)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_evaluation_as_timm_s_script_does_it(tmp_path: Path) -> None:
    """Real photographs in folders, a checkpoint file, timm's own reader, transform, loop and measure."""
    write_crops(tmp_path / "data")
    torch.manual_seed(0)
    saved = create_model("lvvit_t", 20, 64, **TINY)
    torch.save({"state_dict": get_state_dict(saved)}, tmp_path / "model.pth.tar")
    model = timm.create_model("lvvit_t", num_classes=20, img_size=64, scriptable=False, global_pool=None, **TINY)
    load_checkpoint(model, str(tmp_path / "model.pth.tar"), use_ema=True)
    config = resolve_data_config({"img_size": 64}, model=model, use_test_size=True)
    assert (config["input_size"], config["crop_pct"]) == ((3, 64, 64), 0.9)
    split = next(path for path in sorted((tmp_path / "data").iterdir()) if path.is_dir())
    dataset = create_dataset(root=str(split), name="", split="validation", class_map="")
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=8,
        use_prefetcher=False,
        num_workers=0,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    model.eval()
    saved.eval()
    seen = 0
    with torch.inference_mode():
        for images, target in loader:
            output = model(images)
            torch.testing.assert_close(output, saved(images))
            assert 0 <= accuracy(output, target, topk=(1, 5))[1].item() <= 100
            seen += len(images)
    assert seen == len(dataset) > 0


def test_a_training_step_as_timm_s_benchmark_does_it() -> None:
    model = timm.create_model("lvvit_t", num_classes=4, img_size=32, drop_path_rate=0.1, drop_block_rate=None, **TINY)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
    output = model.train()(torch.randn(2, 3, 32, 32))
    assert isinstance(output, tuple)  # the script takes the first entry, the class logits
    assert isinstance(output, TokenOutput)
    torch.nn.functional.cross_entropy(output[0], torch.tensor([0, 3])).backward()
    before = model.head.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
    model.set_grad_checkpointing(True)
    assert model.grad_checkpointing
    scales = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    order = [model.patch_embed.proj, model.blocks[0].attn.qkv, model.blocks[1].attn.qkv, model.head]
    assert [scales[id(layer.weight)] for layer in order] == [0.125, 0.25, 0.5, 1.0]
    assert scales[id(model.aux_head.weight)] == 1.0
    assert scales[id(model.norm.weight)] == 0.5


def test_other_code_does_not_pay_for_timm() -> None:
    """Labels load neither models nor timm; models load without timm."""
    script = (
        "import sys, tokenlabel.labels; assert not {'timm', 'tokenlabel.models'} & set(sys.modules)\n"
        "sys.modules['timm'] = None\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'timm' else found(name, package)\n"
        "from tokenlabel.models import create_model\n"
        "create_model('lvvit_t', 2, 32, depth=1)\n"
        "for name in ('timm/resnet18', 'resnet18'):\n"
        "    try: create_model(name)\n"
        "    except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    needs, unknown = done.stdout.splitlines()
    assert needs == "model timm/resnet18 needs timm: pip install 'tokenlabel[study]'"
    assert unknown.startswith("unknown model 'resnet18'. Legal: lvvit_t")
