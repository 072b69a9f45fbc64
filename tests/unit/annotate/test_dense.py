"""Dense heads: the paper's nine by structure, and every family of timm either handled or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from tokenlabel.annotate.dense import Annotator, create_backbone, preprocessing_of
from tokenlabel.core.errors import CheckpointError


def liven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Cheap random weights under which activations neither die nor explode and classes differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(0, fan_in**-0.5, generator=generator)
        elif name.endswith("weight") or "gain" in name or "gamma" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.uniform_(-0.1, 0.1, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def annotator_of(name: str, image_px: int | None = None, **options: Any) -> Annotator:
    backbone = liven(
        create_backbone(name, 7, image_px, None) if not options else timm.create_model(name, num_classes=7, **options)
    )
    return Annotator(backbone, preprocessing_of(backbone), "0" * 64, name).eval()


def photograph(image_px: int) -> torch.Tensor:
    return torch.rand(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


NINE = ("efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_b8",
        "nfnet_f6", "resnest269e", "efficientnet_l2")  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NINE)
def test_the_papers_nine_have_a_dense_head_of_18x18_cells(name: str, raw_config: dict[str, Any]) -> None:
    """Without weights: built on the meta device, which computes shapes only."""
    entry = raw_config["annotators"][name]
    config = timm.get_pretrained_cfg(entry["architecture"])
    assert config is not None
    assert config.hf_hub_id or config.url
    with torch.device("meta"):
        backbone = timm.create_model(entry["architecture"], num_classes=entry["num_classes"]).eval()
        annotator = Annotator(backbone, preprocessing_of(backbone), "0" * 64, name)
        logits = annotator(torch.zeros(1, 3, 576, 576, device="meta"))
    assert tuple(logits.shape) == (1, *entry["grid"], 1000) == (1, 18, 18, 1000)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert parameters / 1e6 == pytest.approx(entry["parameters_m"], rel=0.01)
    assert len(annotator.preprocessing.mean) == 3


# one of each of the nine's families; the others differ in depth and width only. `-m campaign` tries all nine
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_b3",
        "resnest14d",
        "dm_nfnet_f0",
        *(pytest.param(name, marks=pytest.mark.campaign) for name in NINE),
    ],
)
def test_the_mean_of_the_map_equals_the_models_own_logits(name: str, raw_config: dict[str, Any]) -> None:
    architecture = raw_config["annotators"][name]["architecture"].split(".")[0] if name in NINE else name
    annotator = annotator_of(architecture)
    images = photograph(96)
    kind, difference = annotator.check(images)
    assert kind == "linear"
    assert difference < 1e-4
    with torch.inference_mode():
        torch.testing.assert_close(annotator(images).mean((1, 2)), annotator.backbone(images), rtol=1e-3, atol=1e-4)


HANDLED = {
    "resnet18": "linear", "resnetv2_50": "linear", "regnety_002": "linear", "densenet121": "linear", "dla34": "linear",
    "swin_tiny_patch4_window7_224": "linear", "maxvit_rmlp_pico_rw_256": "linear", "mobilenetv3_small_050": "pooled",
    "convnext_atto": "pooled", "edgenext_xx_small": "pooled", "tiny_vit_5m_224": "pooled", "mixer_s16_224": "linear",
    "vit_tiny_patch16_224": "class token", "deit_tiny_distilled_patch16_224": "class token", "beit_base_patch16_224": "pooled",
    "eva02_tiny_patch14_224": "pooled", "vit_medium_patch16_reg4_gap_256": "pooled", "cait_xxs24_224": "class token",
    "xcit_nano_12_p16_224": "class token", "twins_svt_small": "linear", "pvt_v2_b0": "linear", "volo_d1_224": "class token",
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", HANDLED)
def test_families_that_are_handled(name: str) -> None:
    annotator = annotator_of(name)
    images = photograph(annotator.backbone.pretrained_cfg["input_size"][-1])
    if name.startswith("mobilenetv3"):
        annotator.backbone.conv_head.weight.data.mul_(30)  # random weights leave its activation nearly linear
    kind, _ = annotator.check(images)
    with torch.inference_mode():
        logits = annotator(images)
    assert kind == HANDLED[name]
    assert logits.shape[1] == logits.shape[2] >= 7
    assert logits.std((1, 2)).min() > 0  # cells differ


REFUSED = {
    "vit_base_patch16_siglip_224": "pools by attention",
    "crossvit_9_240": "classifier is a|features are list|heads of different widths",
    "levit_128s": "classifier is a NormLinear",
}


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        annotator_of(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pooling", ["max", "catavgmax"])
def test_a_pooling_that_is_no_average_is_refused_by_the_check(pooling: str) -> None:
    annotator = annotator_of("resnet18", global_pool=pooling)
    with pytest.raises((CheckpointError, RuntimeError), match=r"does more than averaging|shapes cannot be multiplied"):
        annotator.check(photograph(96))


def test_a_transformer_takes_another_resolution() -> None:
    annotator = annotator_of("vit_tiny_patch16_224", image_px=320)
    with torch.inference_mode():
        assert tuple(annotator(photograph(320)).shape[1:3]) == (20, 20)


def test_position_embeddings_of_weights_are_resized() -> None:
    small = liven(create_backbone("vit_tiny_patch16_224", 7, None, None))
    large = create_backbone("vit_tiny_patch16_224", 7, 320, dict(small.state_dict()), "here")
    assert large.pos_embed.shape[1] == 401
    assert torch.equal(large.head.weight, small.head.weight)


def test_volos_own_token_head_is_used() -> None:
    annotator = annotator_of("volo_d1_224")
    images = photograph(224)
    with torch.inference_mode():
        features = annotator.backbone.forward_features(images)
        torch.testing.assert_close(annotator(images).flatten(1, 2), annotator.backbone.aux_head(features[:, 1:]))
