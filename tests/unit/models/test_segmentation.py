"""Segmenters: the paper's sizes, images of any size, gradients everywhere, learning, and their files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.counts import study
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.paper import value
from tokenlabel.models import (
    SegmentationModel,
    SegmentationOutput,
    TokenModel,
    count_parameters,
    create_model,
    create_segmenter,
    load_model,
    load_segmenter,
    save_segmenter,
    save_weights,
)

from .segmenters import fcn, small, upernet

Make = Callable[..., TokenModel]
HEADS = {"fcn": fcn(8), "upernet": upernet(8, 12)}


def spec_of(head: dict[str, Any], image_px: int = 64) -> dict[str, Any]:
    settings = {"depth": 2, "width": 24, "heads": 2}
    return {
        "stage": "segment", "model": {"architecture": "lvvit_s", "settings": settings, "stochastic_depth": 0.1}, "head": head,
        "image_px": image_px, "recipe": {"crop_px": 96, "short_side_px": 80},
    }  # fmt: skip


def randomised(model: SegmentationModel) -> SegmentationModel:
    """With running statistics and weights that a fresh one has not."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value + 0.2 * torch.rand(value.shape))
    return model


@pytest.mark.parametrize(
    ("table", "name"),
    [("5", "lvvit_s_fcn_token"), ("5", "lvvit_s_upernet_token"), ("6", "lvvit_m_upernet"), ("6", "lvvit_l_upernet")],
)
def test_parameters_are_the_papers(table: str, name: str) -> None:
    """The segmenter of each row of the study, rounded to millions with the auxiliary head: what Tables 5 and 6 print."""
    (spec,) = [row.run.spec for row in study().segmentation_tables["segmentation"].rows if row.name == name]
    printed = value(table, name, "params_m")
    assert printed is not None
    with torch.device("meta"):
        backbone = create_model(spec["model"]["architecture"], 1, spec["image_px"], **spec["model"]["settings"])
        model = create_segmenter(
            backbone, spec["head"], spec["dataset"]["num_classes"], crop_px=spec["recipe"]["crop_px"]
        )
    assert round(count_parameters(model) / 1e6) == printed.value


@pytest.mark.parametrize("kind", HEADS)
def test_training_gives_logits_of_head_and_auxiliary_and_every_weight_learns(kind: str, tiny: Make) -> None:
    model = create_segmenter(tiny(), HEADS[kind], 3)
    assert model.training
    output = model(torch.randn(1, 3, 64, 96))
    assert isinstance(output, SegmentationOutput)
    rows, cols = (8, 12) if kind == "fcn" else (16, 24)
    assert output.logits.shape == (1, 3, rows, cols)
    assert output.auxiliary is not None
    assert output.auxiliary.shape == (1, 3, 4, 6)
    (output.logits.square().sum() + output.auxiliary.square().sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("kind", HEADS)
def test_without_auxiliary_head_too(kind: str, tiny: Make) -> None:
    model = create_segmenter(tiny(), HEADS[kind] | {"auxiliary": None}, 3)
    output = model(torch.randn(2, 3, 32, 32))
    assert output.auxiliary is None
    output.logits.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", ["lvvit_s", "t2t_vit_14", "timm/vit_tiny_patch16_224", "timm/resnet18"])
def test_eval_takes_any_size_and_any_backbone(name: str) -> None:
    settings = {} if name.startswith("timm") else {"depth": 2, "width": 24, "heads": 2}
    model = small(create_model(name, 5, 64, **settings), HEADS["upernet"])
    with torch.no_grad():
        for size in ((64, 96), (70, 45), (3, 200)):
            assert model(torch.randn(2, 3, *size)).shape == (2, 3, *size)


def test_an_image_between_tokens_is_filled_up_with_the_mean_colour_and_cut_back(tiny: Make) -> None:
    model = randomised(small(tiny()))
    images = torch.randn(1, 3, 41, 50)
    with torch.no_grad():
        expected = model(F.pad(images, (0, 14, 0, 7)))[..., :41, :50]
        assert torch.equal(model(images), expected)
    with pytest.raises(ValueError, match=r"images are 41 x 50 px; in training .* multiples of a token's, 16 px"):
        model.train()(images)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32), (1, 3, 0, 32)])
def test_images_of_another_shape(shape: tuple[int, ...], tiny: Make) -> None:
    with pytest.raises(ValueError, match=r"a segmenter takes \(batch, 3, height, width\)"):
        small(tiny())(torch.zeros(shape))


def test_the_weights_of_the_backbone_stay(tiny: Make) -> None:
    backbone = tiny()
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    kept = create_segmenter(backbone, fcn(8), 3).backbone.state_dict()
    assert len(kept) == len(before) - 6  # norm, head, aux_head
    assert all(torch.equal(weight, before[name]) for name, weight in kept.items())


def test_positions_of_the_crops_are_learnt_where_asked(tiny: Make) -> None:
    model = create_segmenter(tiny(image_px=64), fcn(8), 3, crop_px=96)
    assert (model.image_px, model.token_px) == (96, 16)
    assert model.backbone.state_dict()["pos_embed"].shape == (1, 37, 24)
    with pytest.raises(ConfigError, match="crop_px is 100; it must be a multiple of the token size 16"):
        create_segmenter(tiny(), fcn(8), 3, crop_px=100)


@pytest.mark.parametrize(
    ("name", "learnt_px"), [("timm/swin_tiny_patch4_window7_224", 224), ("timm/vit_tiny_patch16_224", 96)]
)
def test_crops_of_timm_networks(name: str, learnt_px: int) -> None:
    """Swin has no positions to interpolate, and takes crops that set_image_px would refuse."""
    model = create_segmenter(create_model(name, 5, 224), fcn(8), 3, crop_px=96)
    assert model.image_px == learnt_px
    assert model(torch.randn(2, 3, 96, 96)).logits.shape[:2] == (2, 3)
    with pytest.raises(ConfigError, match=r"crop_px is 90; it must be a multiple of the token size"):
        create_segmenter(create_model(name, 5, 224), fcn(8), 3, crop_px=90)


def test_grad_checkpointing_and_weight_decay_reach_the_backbone(tiny: Make) -> None:
    model = create_segmenter(tiny(), fcn(8), 3)
    model.set_grad_checkpointing()
    assert model.no_weight_decay() == {"backbone.pos_embed", "backbone.cls_token"}
    calls: list[int] = []
    model.backbone.get_submodule("blocks.0").register_forward_pre_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    assert len(calls) == 2  # forward, and again for backward


def test_copies_and_synchronised_norms_work_alike(tiny: Make) -> None:
    model = randomised(small(tiny(), HEADS["upernet"]))
    images = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        expected = model(images)
        for other in (copy.deepcopy(model), nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))):
            torch.testing.assert_close(other(images), expected)


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stripes of three colours under noise, 48 x 64 px; the mask says which."""
    edges = torch.rand(count, 2, generator=generator).sort(dim=1).values * 64
    cols = torch.arange(64.0)
    mask = (cols[None] > edges[:, :1]).long() + (cols[None] > edges[:, 1:]).long()
    images = F.one_hot(mask, 3).permute(0, 2, 1)[:, :, None].repeat(1, 1, 48, 1) * 2.0
    return images + 0.5 * torch.randn(images.shape, generator=generator), mask[:, None].repeat(1, 48, 1)


@pytest.mark.parametrize("kind", HEADS)
def test_a_few_steps_teach_it(kind: str, tiny: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    model = create_segmenter(tiny(stem_kernels=(8,), stem_strides=(8,)), HEADS[kind], 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def accuracy() -> float:
        images, mask = scenes(16, torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = model.eval()(images).argmax(dim=1)
        model.train()
        return float((found == mask).float().mean())

    before = accuracy()
    for _ in range(30):
        images, mask = scenes(4, generator)
        output = model(images)
        loss = sum(
            weight * F.cross_entropy(F.interpolate(logits, size=(48, 64), mode="bilinear"), mask)
            for weight, logits in ((1.0, output.logits), (0.4, output.auxiliary))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy() > max(0.85, before + 0.2)


@pytest.mark.parametrize("kind", HEADS)
def test_a_file_gives_the_segmenter_back(kind: str, tiny: Make, tmp_path: Path) -> None:
    model = randomised(create_segmenter(tiny(image_px=64), HEADS[kind], 3, crop_px=96))
    averaged = randomised(copy.deepcopy(model))
    spec = spec_of(HEADS[kind])
    save_segmenter(tmp_path, model, spec, ("sky", "road", "car"), 4, averaged=averaged)
    for use_ema, expected in ((True, averaged), (False, model)):
        loaded = load_segmenter(tmp_path, use_ema=use_ema)
        assert not loaded.model.training
        assert loaded.averaged == use_ema
        assert loaded.classes == ("sky", "road", "car")
        assert (loaded.config.crop_px, loaded.config.short_side_px, loaded.config.image_px) == (96, 80, 96)
        images = torch.randn(1, 3, 40, 56)
        with torch.no_grad():
            assert torch.equal(loaded.model(images), expected.eval()(images))
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "segmentation"
    assert load_segmenter(tmp_path / "model.safetensors").averaged is False


def test_a_classifier_is_no_segmenter_and_the_other_way_round(tiny: Make, tmp_path: Path) -> None:
    save_segmenter(tmp_path, create_segmenter(tiny(), fcn(8), 3), spec_of(fcn(8)), "abc", 0)
    with pytest.raises(CheckpointError, match=r"config\.json: .*it is a segmenter's, .* load_segmenter reads it"):
        load_model(tmp_path)
    save_weights(tiny(), tmp_path / "model.safetensors", {})
    (tmp_path / "config.json").write_text('{"architecture": "lvvit_s"}')
    with pytest.raises(CheckpointError, match=r'of a classifier \(no "task": "segmentation"\); expected a segmenter'):
        load_segmenter(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 4}, r"3 classes are named, num_classes is 4"),
        ({"image_px": "large"}, r"config\.json: image_px: .*valid integer"),
        ({"head": {"kind": "fcn"}}, r"config\.json: head\.channels: Field required"),
        ({"head": {**fcn(8), "levels": 5}}, r"config\.json: head\.levels: "),
        ({"std": [0, 1, 1]}, r"config\.json: std\.0: .*greater than 0"),
        ({"head": fcn(9)}, r"is of another model\. .*wrong shape: .*head\.convolutions"),
        ({"settings": {"depth": 2, "width": 25, "heads": 2}}, "width 25 cannot be divided among heads 2"),
    ],
)
def test_descriptions_that_do_not_fit(change: dict[str, Any], words: str, tiny: Make, tmp_path: Path) -> None:
    save_segmenter(tmp_path, create_segmenter(tiny(), fcn(8), 3), spec_of(fcn(8)), "abc", 0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((CheckpointError, ConfigError), match=words) as caught:
        load_segmenter(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_missing_or_damaged(tiny: Make, tmp_path: Path) -> None:
    save_segmenter(tmp_path, create_segmenter(tiny(), fcn(8), 3), spec_of(fcn(8)), "abc", 0)
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        load_segmenter(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; it says which segmenter"):
        load_segmenter(tmp_path)


def test_one_class_is_no_segmentation(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="num_classes is 1; a segmenter tells at least 2 classes apart"):
        create_segmenter(tiny(), fcn(8), 1)
