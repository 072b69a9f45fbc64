from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, TokenModel, TokenOutput, create_model, draw_mix_box, partner_order
from tokenlabel.models.tokens import mix_tokens


class FixedDraws(random.Random):
    """Answers every draw with given numbers."""

    def __init__(self, share: float, centres: list[int]) -> None:
        super().__init__()
        self.share, self.centres = share, iter(centres)

    def betavariate(self, alpha: float, beta: float) -> float:
        return self.share

    def randrange(self, *_: int) -> int:  # type: ignore[override]
        return next(self.centres)


class Echo(TokenModel):
    """Its token logits are the mean colours of the (mixed) patches, so they tell which image they came from."""

    head_names = ()

    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        tokens = F.adaptive_avg_pool2d(images, self.grid).flatten(2).transpose(1, 2)
        if mix is not None:
            tokens = mix_tokens(tokens, mix)
        return tokens.mean(dim=1), tokens


def test_mask_is_row_major_rows_down_columns_right() -> None:
    box = MixBox(rows=(0, 1), cols=(1, 4), grid=(3, 4))
    assert box.mask().view(3, 4).int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert box.kept == pytest.approx(1 - 3 / 12)


@pytest.mark.parametrize(
    ("rows", "cols"), [((0, 4), (0, 1)), ((-1, 1), (0, 1)), ((2, 1), (0, 1)), ((0, 1), (0, 5))], ids=str
)
def test_box_outside_the_grid_is_refused(rows: tuple[int, int], cols: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not lie inside"):
        MixBox(rows=rows, cols=cols, grid=(3, 4))


def test_scaled_box_keeps_rows_and_columns_apart() -> None:
    assert MixBox((0, 1), (1, 4), (3, 4)).scaled((30, 8)) == MixBox((0, 10), (2, 8), (30, 8))


@pytest.mark.parametrize(
    ("share", "centres", "rows", "cols"),
    [
        (0.75, [4, 2], (2, 6), (1, 3)),  # side sqrt(1 - 0.75) = half of 8 rows and of 4 columns
        (0.75, [0, 3], (0, 2), (2, 4)),  # clipped at the top and at the right
        (1.0, [4, 2], (4, 4), (2, 2)),  # lambda 1 mixes nothing
        (0.0, [4, 2], (0, 8), (0, 4)),
    ],
    ids=["inside", "clipped", "empty", "everything"],
)
def test_draw_follows_cutmix(share: float, centres: list[int], rows: tuple[int, int], cols: tuple[int, int]) -> None:
    assert draw_mix_box((8, 4), 1.0, FixedDraws(share, centres)) == MixBox(rows, cols, (8, 4))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 10.0), st.integers(0, 2**32))
def test_kept_is_the_real_area_after_clipping(rows: int, cols: int, alpha: float, seed: int) -> None:
    box = draw_mix_box((rows, cols), alpha, random.Random(seed))
    assert box.kept == pytest.approx(1.0 - box.mask().float().mean().item(), abs=1e-6)


def test_draws_are_reproducible_and_cover_the_grid() -> None:
    boxes = [draw_mix_box((14, 14), 1.0, random.Random(seed)) for seed in range(300)]
    assert boxes == [draw_mix_box((14, 14), 1.0, random.Random(seed)) for seed in range(300)]
    hit = torch.stack([box.mask() for box in boxes]).float().mean(0)
    assert hit.min() > 0.1  # every token is mixed sometimes
    assert hit.max() < 0.7  # none always


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="alpha is 0"):
        draw_mix_box((4, 4), 0, random.Random(0))


def test_partner_is_the_reversed_batch() -> None:
    assert partner_order(5).tolist() == [4, 3, 2, 1, 0]
    tokens = torch.randn(5, 6, 2)
    box = MixBox((0, 1), (1, 3), (2, 3))
    mixed = mix_tokens(tokens, box)
    partner = tokens[partner_order(5)]
    assert torch.equal(mixed[:, box.mask()], partner[:, box.mask()])
    assert torch.equal(mixed[:, ~box.mask()], tokens[:, ~box.mask()])
    assert torch.equal(mix_tokens(mixed, box), tokens)


def test_class_logits_are_mixed_by_kept_and_token_logits_are_handed_back() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])  # images of one colour each
    images = colours[:, :, None, None].expand(4, 3, 64, 64)
    box = MixBox((0, 1), (1, 4), (4, 4))
    output = Echo(3, 64, (4, 4), token_score_weight=0.5).train()(images, box)
    assert isinstance(output, TokenOutput)
    torch.testing.assert_close(output.token_logits, colours[:, None].expand(4, 16, 3))
    expected = box.kept * colours + (1 - box.kept) * colours[partner_order(4)]  # equation 7
    torch.testing.assert_close(output.class_logits, expected)


def _record(module: nn.Module, seen: list[Tensor]) -> None:
    module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))


@pytest.mark.parametrize(
    ("name", "embedding", "encoder_input"),
    [
        ("lvvit_s", "patch_embed", "blocks"),
        ("t2t_vit_14", "tokens_to_token", "blocks"),
    ],
)
def test_the_encoder_sees_mixed_tokens_with_their_own_positions(
    name: str, embedding: str, encoder_input: str, tiny: Callable[..., TokenModel]
) -> None:
    model = tiny(name, **({"token_dropout": 0.0} if name == "t2t_vit_14" else {})).train()
    embedded: list[Tensor] = []
    encoded: list[Tensor] = []
    _record(model.get_submodule(embedding), embedded)
    model.get_submodule(encoder_input).register_forward_pre_hook(lambda _m, inputs: encoded.append(inputs[0].detach()))
    box = MixBox((0, 1), (1, 4), (4, 4))
    model(torch.randn(3, 3, 64, 64), box)
    own, partner = embedded[0], embedded[0][partner_order(3)]
    expected = torch.where(torch.tensor([0, 1, 1, 1] + [0] * 12, dtype=torch.bool)[:, None], partner, own)
    assert not torch.allclose(own, expected)
    torch.testing.assert_close(encoded[0][:, 1:], expected + model.pos_embed[:, 1:].detach())  # type: ignore[index]


def test_lvvit_hands_token_logits_back(tiny: Callable[..., TokenModel]) -> None:
    """Without blocks and positions a token's logits depend on that token alone, so mixing must not change them."""
    model = tiny().train()
    model.blocks = nn.Sequential()
    nn.init.zeros_(model.pos_embed)  # type: ignore[arg-type]
    images = torch.randn(4, 3, 64, 64)
    for rows, cols in (((0, 1), (1, 4)), ((1, 4), (0, 2)), ((0, 0), (0, 0)), ((0, 4), (0, 4))):
        mixed = model(images, MixBox(rows, cols, (4, 4)))
        torch.testing.assert_close(mixed.token_logits, model(images).token_logits)


def test_timm_transformer_mixes_after_patch_embedding_and_leaves_no_hook() -> None:
    model = create_model("timm/vit_tiny_patch16_224", 5, 64).train()
    embedding, normed = model.get_submodule("backbone.patch_embed"), model.get_submodule("backbone.norm_pre")
    images, box = torch.randn(3, 3, 64, 64), MixBox((0, 1), (1, 4), (4, 4))
    plain = embedding(images)
    seen: list[Tensor] = []
    _record(normed, seen)
    output = model(images, box)
    positions = model.state_dict()["backbone.pos_embed"][:, 1:]
    torch.testing.assert_close(seen[0][:, 1:], mix_tokens(plain, box) + positions)
    assert output.token_logits.shape == (3, 16, 5)
    assert not embedding._forward_hooks


def test_timm_convolutional_network_mixes_pixels() -> None:
    model = create_model("timm/resnet18", 5, 64).train()
    assert model.grid == (2, 2)
    images = torch.randn(3, 3, 64, 64)
    by_hand = images.clone()
    by_hand[:, :, :32, 32:] = images.flip(0)[:, :, :32, 32:]  # first row, second column
    box = MixBox((0, 1), (1, 2), (2, 2))
    mixed, expected = model(images, box), model(by_hand)
    torch.testing.assert_close(mixed.class_logits, expected.class_logits)
    torch.testing.assert_close(mixed.token_logits, mix_tokens(expected.token_logits, box))


def test_misuse_is_refused(tiny: Callable[..., TokenModel]) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"\(2, 3, 48, 48\); this model takes \(batch, 3, 64, 64\)"):
        model(torch.zeros(2, 3, 48, 48))
    with pytest.raises(ValueError, match="grid"):
        model.train()(torch.zeros(2, 3, 64, 64), MixBox((0, 1), (0, 1), (2, 2)))
    with pytest.raises(ValueError, match="eval mode"):
        model.eval()(torch.zeros(2, 3, 64, 64), MixBox((0, 1), (0, 1), (4, 4)))
