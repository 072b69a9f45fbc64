from __future__ import annotations

import copy

import pytest
import timm
import torch

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, create_model
from tokenlabel.models.timm_backbones import TimmTokenModel, _Layout


@pytest.mark.parametrize(
    ("name", "image_px", "grid", "embedding_grid"),
    [
        ("deit_tiny_patch16_224", 224, (14, 14), (14, 14)),
        ("mixer_s16_224", 224, (14, 14), (14, 14)),
        ("resnet18", 96, (3, 3), None),
        ("efficientnet_lite0", 96, (3, 3), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forward_in_both_modes(
    name: str, image_px: int, grid: tuple[int, int], embedding_grid: tuple[int, int] | None
) -> None:
    model = create_model(f"timm/{name}", 7, image_px, token_score_weight=0.5)
    assert isinstance(model, TimmTokenModel)
    assert model.grid == grid
    assert (model.embedding_layout.grid if model.embedding_layout else None) == embedding_grid
    images = torch.randn(2, 3, image_px, image_px)
    output = model.train()(images, MixBox((0, 1), (1, 3), grid))
    assert output.class_logits.shape == (2, 7)
    assert output.token_logits.shape == (2, grid[0] * grid[1], 7)
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    with torch.no_grad():
        best = model.eval().forward_tokens(images).token_logits.amax(1)
        torch.testing.assert_close(model(images), model.backbone(images) + 0.5 * best)  # timm's own logits


@pytest.mark.parametrize(
    ("name", "kind", "grid", "embedding"),
    [
        ("deit_tiny_distilled_patch16_224", "tokens", (14, 14), (14, 14)),
        ("volo_d1_224", "tokens", (14, 14), (28, 28)),
        ("swin_tiny_patch4_window7_224", "nhwc", (7, 7), (56, 56)),
        ("resnest50d", "nchw", (7, 7), None),
        ("convnext_atto", "nchw", (7, 7), None),
    ],
)
def test_layouts(name: str, kind: str, grid: tuple[int, int], embedding: tuple[int, int] | None) -> None:
    with torch.device("meta"):
        model = create_model(f"timm/{name}", 7)
        assert isinstance(model, TimmTokenModel)
        output = model.train()(torch.zeros(2, 3, 224, 224), MixBox((0, 1), (1, 3), grid))
    assert (model.layout.kind, model.grid) == (kind, grid)
    assert (model.embedding_layout.grid if model.embedding_layout else None) == embedding
    assert output.class_logits.shape == (2, 7)
    assert output.token_logits.shape == (2, grid[0] * grid[1], 7)


@pytest.mark.parametrize("kind", ["nchw", "nhwc", "tokens"])
def test_layouts_flatten_and_mix_row_by_row(kind: str) -> None:
    tokens = torch.randn(2, 24, 5)  # 4 rows of 6
    shaped = {
        "tokens": tokens,
        "nhwc": tokens.view(2, 4, 6, 5),
        "nchw": tokens.view(2, 4, 6, 5).permute(0, 3, 1, 2).contiguous(),
    }[kind]
    layout = _Layout(kind, (4, 6))
    assert torch.equal(layout.flatten(shaped), tokens)
    mixed = layout.flatten(layout.mix(shaped, MixBox((0, 1), (1, 3), (2, 3)))).view(2, 4, 6, 5)
    own, partner = tokens.view(2, 4, 6, 5), tokens.flip(0).view(2, 4, 6, 5)
    assert torch.equal(mixed[:, :2, 2:], partner[:, :2, 2:])
    assert torch.equal(mixed[:, 2:], own[:, 2:])
    assert torch.equal(mixed[:, :2, :2], own[:, :2, :2])


def test_image_size_stochastic_depth_and_normalisation_reach_timm() -> None:
    with torch.device("meta"):
        model = create_model("timm/mixer_s16_224", 3, 96, stochastic_depth=0.2)
    assert model.grid == (6, 6)
    assert model.mean == (0.5, 0.5, 0.5)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates
    assert max(rates) == pytest.approx(0.2)


def test_copy_during_training_is_independent() -> None:
    """Averaged copies of the weights (EMA) are made by deepcopy."""
    model = create_model("timm/vit_tiny_patch16_224", 3, 32).train()
    images = torch.randn(2, 3, 32, 32)
    box = MixBox((0, 1), (0, 2), (2, 2))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(images, box).class_logits, model(images, box).class_logits)


def test_unknown_name_lists_close_ones_and_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="timm/resnet18"):
        create_model("timm/resnett18")
    asked: list[object] = []
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or original(*a, **k))
    with torch.device("meta"):
        create_model("timm/resnet18", 3, 64)
    assert asked == [False]


def test_models_without_a_token_grid_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="coat_tiny gives list"):
        create_model("timm/coat_tiny")
