"""Maps of blocks: the right ones, in the right place, at sizes that are not the backbone's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import TokenModel, create_model
from tokenlabel.models.feature_levels import choose_blocks, measure_levels
from tokenlabel.models.transformer import TokenTransformer

Make = Callable[..., TokenModel]


@pytest.mark.parametrize(
    ("blocks", "depth", "count", "found"),
    [
        ("late", 16, 4, (7, 10, 13, 16)),  # the released configurations, counted from 1
        ("late", 20, 4, (11, 14, 17, 20)),
        ("late", 24, 4, (15, 18, 21, 24)),
        ("late", 12, 4, (3, 6, 9, 12)),
        ("late", 10, 4, (1, 4, 7, 10)),
        ("late", 9, 4, (3, 5, 7, 9)),  # too few blocks: as even
        ("late", 4, 2, (1, 4)),
        ("even", 16, 4, (4, 8, 12, 16)),
        ("even", 14, 4, (4, 7, 11, 14)),
        ("even", 2, 4, (1, 1, 2, 2)),
        ([2, 3], 8, 2, (2, 3)),
    ],
)
def test_blocks(blocks: str | list[int], depth: int, count: int, found: tuple[int, ...]) -> None:
    assert choose_blocks(blocks, depth, count) == found


@pytest.mark.parametrize("blocks", [[0, 4], [4, 9], [4, 4], [5, 4], [4], [1, 2, 3], "all"])
def test_blocks_that_there_are_not(blocks: str | list[int]) -> None:
    with pytest.raises(
        ConfigError, match=r"levels\.blocks is .*(expected 2 numbers .* last block 8|legal are late, even)"
    ):
        choose_blocks(blocks, 8, 2)


@pytest.mark.parametrize(
    "name", ["lvvit_s", "t2t_vit_14", "t2t_vit_t_14", "timm/vit_tiny_patch16_224", "timm/resnet18"]
)
def test_the_last_map_is_what_the_heads_of_the_classifier_read(name: str) -> None:
    small = {} if name.startswith("timm") else {"depth": 3, "width": 24, "heads": 2}
    model = create_model(name, 5, 64, **small).eval()
    images = torch.randn(2, 3, 64, 64)
    (last,) = model.forward_levels(images, [model.level_count])
    tokens = last.flatten(2).transpose(1, 2)
    with torch.no_grad():
        if isinstance(model, TokenTransformer):
            expected, tokens = model.forward_features(images)[:, 1:], model.norm(tokens)
        else:
            features = model.forward_features(images)
            expected = model.layout.flatten(features)
            tokens = model.backbone.norm(tokens) if hasattr(model.backbone, "norm") else tokens
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_maps_come_by_number_and_later_blocks_are_dropped(tiny: Make) -> None:
    model = tiny(depth=4).eval()
    images = torch.randn(1, 3, 64, 64)
    all_maps = model.forward_levels(images, [1, 2, 3, 4])
    model.keep_levels(3)
    assert model.level_count == 3
    for number in (1, 2, 3):
        (found,) = model.forward_levels(images, [number])
        assert torch.equal(found, all_maps[number - 1])
    assert not any(torch.equal(all_maps[0], other) for other in all_maps[1:])
    assert not any(name.startswith(("head", "aux_head", "norm.", "blocks.3")) for name in model.state_dict())


def test_a_map_has_the_rows_and_columns_of_the_image(tiny: Make) -> None:
    """Blocks that pass tokens on: what is left is each patch's own embedding, in its place, and its position."""
    model = tiny(stem_kernels=(16,), stem_strides=(16,)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("attn.proj.weight", "attn.proj.bias", "fc2.weight", "fc2.bias")) or name == "pos_embed":
                value.zero_()
        images = torch.randn(2, 3, 48, 112)
        (found,) = model.forward_levels(images, [2])
        expected = model.get_submodule("patch_embed.proj")(images)
        assert found.shape == (2, 24, 3, 7)
        torch.testing.assert_close(found, expected)
        grid = model.get_parameter("pos_embed")[0, 1:].view(4, 4, -1)
        grid[..., 0] += torch.arange(4.0)  # grows to the right
        grid[..., 1] += torch.arange(4.0)[:, None]  # grows downwards
        across, down = (model.forward_levels(images, [2])[0] - expected)[:, :2].unbind(1)
    assert (across.diff(dim=2) > 0).all()
    assert (down.diff(dim=1) > 0).all()
    torch.testing.assert_close(across[:, :1].expand_as(across), across)
    torch.testing.assert_close(down[..., :1].expand_as(down), down)


def test_positions_learn_through_the_interpolation(tiny: Make) -> None:
    model = tiny()
    model.forward_levels(torch.randn(1, 3, 32, 80), [2])[0].square().sum().backward()
    gradient = model.get_parameter("pos_embed").grad
    assert gradient is not None
    assert (gradient.abs().amax(dim=2) > 0).all()


def test_checkpointed_blocks_give_the_same_gradients(tiny: Make) -> None:
    model = tiny(stochastic_depth=0.0)
    images = torch.randn(2, 3, 32, 48)
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        sum(found.square().sum() for found in model.forward_levels(images, [1, 2])).backward()  # type: ignore[union-attr]
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "px", "count", "widths", "strides"),
    [
        ("timm/vit_tiny_patch16_224", 224, 4, (192,) * 4, (16,) * 4),
        ("timm/deit_tiny_distilled_patch16_224", 224, 2, (192,) * 2, (16,) * 2),
        ("timm/swin_tiny_patch4_window7_224", 224, 4, (96, 192, 384, 768), (4, 8, 16, 32)),
        ("timm/resnet18", 64, 4, (64, 128, 256, 512), (4, 8, 16, 32)),
    ],
)
def test_timm_networks(name: str, px: int, count: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
    model = create_model(name, 5, px).eval()
    blocks = choose_blocks("late", model.level_count, count)
    model.keep_levels(blocks[-1])
    levels = measure_levels(model, blocks)
    assert (levels.widths, levels.strides, levels.is_pyramid) == (widths, strides, len(set(strides)) > 1)
    images = torch.randn(1, 3, 64, 96)
    shapes = [tuple(found.shape) for found in levels.read(model, images)]
    assert shapes == [(1, width, 64 // side, 96 // side) for width, side in zip(widths, strides, strict=True)]


def test_a_switched_timm_transformer_sees_its_own_size_as_before() -> None:
    model = create_model("timm/vit_tiny_patch16_224", 5, 64).eval()
    images = torch.randn(1, 3, 64, 64)
    (before,) = model.forward_levels(images, [12])
    model.keep_levels(12)
    (after,) = model.forward_levels(images, [12])
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/mixer_s16_224", r"mixer_s16_224 takes images of 224 px only.*LV-ViT, T2T-ViT, ViT, DeiT, Swin and CNNs"),
        (
            "timm/inception_v4",
            r"inception_v4: an image of 88 x 132 px gives maps of 20 x 31, .* do not divide it evenly",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_one_line(name: str, words: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=words) as caught:
        model = create_model(name, 5, 224)
        blocks = choose_blocks("late", model.level_count, 4)
        model.keep_levels(blocks[-1])
        measure_levels(model, blocks)
    assert "\n" not in str(caught.value)


def test_a_network_that_takes_smaller_images_than_its_own_but_no_larger_ones_is_refused() -> None:
    """MViT's positions are an index that ends with its own size."""
    model = create_model("timm/mvitv2_tiny", 5, 224)
    model.keep_levels(4)
    with pytest.raises(ConfigError, match=r"mvitv2_tiny takes images of 224 px only.*index 111 is out of bounds"):
        measure_levels(model, (1, 2, 3, 4))


def test_a_timm_network_without_intermediate_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older timm has such."""
    model = create_model("timm/resnet18", 5, 64)
    monkeypatch.delattr(type(model.backbone), "forward_intermediates")
    with pytest.raises(ConfigError, match=r"timm/resnet18 gives no intermediate features in timm.*; ViT, .* do"):
        model.level_count  # noqa: B018


def test_a_model_of_ones_own_without_maps_is_refused() -> None:
    class Own(TokenModel):
        def __init__(self) -> None:
            super().__init__(2, 32, (2, 2), token_score_weight=0.0)
            self.head = nn.Linear(3, 2)

        def encode(self, images: torch.Tensor, mix: object) -> tuple[torch.Tensor, torch.Tensor]:
            return self.head(images.mean((2, 3))), self.head(images.mean((2, 3)))[:, None]

    model = Own()
    for use in (
        lambda: model.level_count,
        lambda: model.keep_levels(1),
        lambda: model.forward_levels(torch.zeros(1, 3, 32, 32), [1]),
    ):
        with pytest.raises(ConfigError, match=r"Own gives no feature maps \(it has no forward_levels\)"):
            use()
