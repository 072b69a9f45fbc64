from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
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
        (0.6, [4, 2], (2, 6), (1, 3)),  # sides 5.06 and 2.53: 5 is odd, so 4 rows
        (0.9, [4, 2], (3, 5), (2, 2)),  # sides 2.5 and 1.26: a side of one cell is none
    ],
    ids=["inside", "clipped", "empty", "everything", "odd", "one"],
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
    assert hit.min() > 0.05  # every token is mixed sometimes
    assert hit.max() < 0.7  # none always


def released_boxes(rows: int, cols: int, alpha: float, count: int) -> np.ndarray:
    """Boxes (count, 4) by numpy arithmetic over all draws at once: top, bottom, left, right."""
    random_state = np.random.default_rng(0)
    ratio = np.sqrt(1 - random_state.beta(alpha, alpha, count))
    edges = []
    for size in (rows, cols):
        half = np.floor(size * ratio).astype(int) // 2
        centre = random_state.integers(0, size, count)
        edges += [np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)]
    return np.stack(edges, 1)


@pytest.mark.parametrize(("grid", "alpha"), [((14, 14), 1.0), ((7, 12), 0.4), ((24, 24), 1.0)], ids=str)
def test_the_law_of_the_boxes_is_the_released_one(grid: tuple[int, int], alpha: float) -> None:
    rng = random.Random(1)
    drawn = [draw_mix_box(grid, alpha, rng) for _ in range(20_000)]
    ours = np.array([(*box.rows, *box.cols) for box in drawn])
    theirs = released_boxes(*grid, alpha, 20_000)
    for edge in range(4):
        assert ks_2samp(ours[:, edge], theirs[:, edge]).pvalue > 1e-3, edge
    for columns in (slice(0, 2), slice(2, 4)):
        assert ks_2samp(np.diff(ours[:, columns])[:, 0], np.diff(theirs[:, columns])[:, 0]).pvalue > 1e-3
    area = np.diff(theirs[:, :2])[:, 0] * np.diff(theirs[:, 2:])[:, 0] / (grid[0] * grid[1])
    assert np.mean([1 - box.kept for box in drawn]) == pytest.approx(area.mean(), abs=0.01)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive_and_finite(alpha: float) -> None:
    """Python's sampler never ends with the last two."""
    with pytest.raises(ConfigError, match=f"alpha is {alpha}"):
        draw_mix_box((4, 4), alpha, random.Random(0))


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


class Identity(TokenModel):
    """Token logits of image b at token t are (b, t) themselves, through mixing: each says whose it is."""

    head_names = ()

    def __init__(self, image_px: int, grid: tuple[int, int]) -> None:
        super().__init__(2, image_px, grid, token_score_weight=0.0)
        self.sequences = torch.empty(0)

    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        batch, places = len(images), self.grid[0] * self.grid[1]
        image, place = torch.meshgrid(torch.arange(batch), torch.arange(places), indexing="ij")
        tokens = torch.stack((image, place), dim=-1)  # (batch, tokens, 2)
        self.sequences = tokens if mix is None else mix_tokens(tokens, mix)
        return self.sequences.float().mean(1), self.sequences


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32))
def test_each_token_is_judged_by_the_image_it_came_from(rows: int, cols: int, batch: int, seed: int) -> None:
    rng = random.Random(seed)
    box = draw_mix_box((rows, cols), 1.0, rng) if rng.random() < 0.5 else any_box(rows, cols, rng)
    model = Identity(8, (rows, cols)).train()
    output = model(torch.zeros(batch, 3, 8, 8), box)
    for image in range(batch):
        for place in range(rows * cols):
            row, col = divmod(place, cols)
            inside = box.rows[0] <= row < box.rows[1] and box.cols[0] <= col < box.cols[1]
            shown = batch - 1 - image if inside else image  # which image sequence `image` shows there
            assert model.sequences[image, place].tolist() == [shown, place]
            # row `image` of the output is compared with image's own targets, so it must hold what shows that image
            assert output.token_logits[image, place].tolist() == [image, place]


def any_box(rows: int, cols: int, rng: random.Random) -> MixBox:
    """A box of any size, odd ones too."""
    spans = [sorted((rng.randint(0, size), rng.randint(0, size))) for size in (rows, cols)]
    return MixBox((spans[0][0], spans[0][1]), (spans[1][0], spans[1][1]), (rows, cols))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_loss_is_equation_6(batch: int, tiny: Callable[..., TokenModel]) -> None:
    """The published form mixes the token labels like the tokens and leaves the logits where they are."""
    model = tiny(stochastic_depth=0.0).train()
    images, labels = torch.randn(batch, 3, 64, 64), torch.randint(0, 5, (batch, 16))
    box = MixBox((1, 4), (0, 3), (4, 4))
    ours = F.cross_entropy(model(images, box).token_logits.flatten(0, 1), labels.flatten())
    mixed_labels = torch.where(box.mask(), labels.flip(0), labels)
    _, in_sequence = model.encode(images, box)
    torch.testing.assert_close(ours, F.cross_entropy(in_sequence.flatten(0, 1), mixed_labels.flatten()))


@pytest.mark.parametrize("training", [True, False])
def test_class_maps_are_probabilities_on_the_grid(training: bool, tiny: Callable[..., TokenModel]) -> None:
    model = tiny(stochastic_depth=0.5).train(training)
    frozen = model.get_submodule("patch_embed.bn1").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(3, 3, 64, 64)
    maps = model.predict_tokens(images)
    assert maps.shape == (3, 5, 4, 4)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert (model.training, frozen.training) == (training, False)  # modes and statistics are left as they were
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(maps.sum(1), torch.ones(3, 4, 4))
    token_logits = model.eval().forward_tokens(images).token_logits
    torch.testing.assert_close(maps[2, :, 1, 3], token_logits[2, 1 * 4 + 3].softmax(-1))


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
    with pytest.raises(ValueError, match=r"\(2, 1, 64, 64\).*three channels \(RGB\)"):
        model(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match="grid"):
        model.train()(torch.zeros(2, 3, 64, 64), MixBox((0, 1), (0, 1), (2, 2)))
    with pytest.raises(ValueError, match="eval mode"):
        model.eval()(torch.zeros(2, 3, 64, 64), MixBox((0, 1), (0, 1), (4, 4)))


@pytest.mark.parametrize(
    ("name", "mean", "crop"),
    [
        ("lvvit_s", 0.485, 0.9),
        ("lvvit_m", 0.485, 1.0),
        ("timm/vit_tiny_patch16_224", 0.5, 0.9),
        ("timm/resnest50d", 0.485, 0.875),
    ],
)
def test_timms_functions_find_the_preprocessing(name: str, mean: float, crop: float) -> None:
    from timm.data import resolve_model_data_config

    model = create_model(name, 3, 64, **({"depth": 1} if "lvvit" in name else {}))
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["mean"][0], config["crop_pct"]) == ((3, 64, 64), mean, crop)
    model.set_image_px(96)
    assert resolve_model_data_config(model)["input_size"] == (3, 96, 96)


@pytest.mark.parametrize(
    "settings",
    [{"token_score_weight": float("nan")}, {"token_score_weight": -1.0}, {"residual_scale": float("nan")}, {"width": 0},
     {"mlp_ratio": 0.0}, {"stem_channels": 0}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_numbers_that_make_no_network_are_refused(settings: dict[str, float], tiny: Callable[..., TokenModel]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        tiny(**settings)
