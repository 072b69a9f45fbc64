"""Relevance maps: equal to the authors' own, nothing lost on the way, and lying where the object is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden.make_relevance import ASKED, CLASSES, MODELS, draw_images, draw_weights
from tokenlabel.core.errors import ConfigError
from tokenlabel.eval import relevance
from tokenlabel.eval.relevance import linear_rule, product_rule, relevance_maps, sum_rule
from tokenlabel.models import TokenModel, create_model

GOLDEN = Path(__file__).parents[2] / "golden" / "relevance.npz"
SMALL = {"depth": 3, "width": 48, "heads": 4, "stem_kernels": (16,), "stem_strides": (16,), "residual_scale": 1.0}


def small_lvvit(**settings: object) -> TokenModel:
    model = create_model("lvvit_t", CLASSES, 96, **{**SMALL, **settings})
    draw_weights(model)
    return model.eval()


def deit_tiny() -> TokenModel:
    model = create_model("timm/deit_tiny_patch16_224", CLASSES, 224)
    draw_weights(model.backbone)
    return model.eval()


@pytest.mark.parametrize(("name", "build"), [("small", small_lvvit), ("deit_tiny", deit_tiny)])
def test_maps_equal_those_of_the_authors_code(name: str, build: Callable[[], TokenModel]) -> None:
    with np.load(GOLDEN) as golden:
        expected = torch.from_numpy(golden[name])
    maps = relevance_maps(build(), draw_images(MODELS[name][0]["img_size"]), ASKED)
    assert maps.dtype == torch.float32
    assert maps.shape == expected.shape
    largest = expected.amax((-1, -2), keepdim=True)
    assert ((maps - expected).abs() / largest).max() < 1e-5
    # the golden maps themselves can tell images and classes apart
    assert ((expected[0, 0] - expected[0, 1]).abs() / largest[0, 0]).max() > 0.1


def test_linear_rule_shares_out_positive_contributions() -> None:
    weight = torch.tensor([[2.0, -1.0, 3.0]])
    # contributions 2, 2 and -3: only the first two count
    shares = linear_rule(weight, torch.tensor([1.0, -2.0, -1.0]), torch.tensor([4.0]))
    torch.testing.assert_close(shares, torch.tensor([2.0, 2.0, 0.0]))


def test_linear_rule_loses_what_nothing_contributed_to() -> None:
    shares = linear_rule(torch.tensor([[1.0, 1.0]]), torch.tensor([-1.0, -1.0]), torch.tensor([5.0]))
    torch.testing.assert_close(shares, torch.zeros(2))


def test_sum_rule_keeps_the_total_of_every_image() -> None:
    first, second, given = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first[0] = 3 - second[0]  # whatever is negative in one part is more than made up by the other
    given = given.abs()  # (4 images, 5 tokens, 6 channels)
    one, other = sum_rule(first, second, given)
    torch.testing.assert_close((one + other).sum((1, 2)), given.sum((1, 2)))
    shares = torch.stack((one.sum((1, 2)), other.sum((1, 2)))) / given.sum((1, 2))
    assert ((shares >= 0) & (shares <= 1)).all(), "without the scaling, parts of opposite sign leave this range"
    plain = (first * given / (first + second)).sum((1, 2)) / given.sum((1, 2))
    assert ((plain < 0) | (plain > 1)).any()


def test_product_rule_gives_half_to_each_factor() -> None:
    first, second = torch.rand(2, 3, 4) + 0.1, torch.rand(2, 4, 5) + 0.1
    given = torch.rand(2, 3, 5)
    one, other = product_rule(first, second, given)
    torch.testing.assert_close(one.sum(), given.sum() / 2)
    torch.testing.assert_close(other.sum(), given.sum() / 2)
    single = product_rule(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0], [4.0]]), torch.tensor([[7.0]]))
    torch.testing.assert_close(single[0], torch.tensor([[0.5, 3.0]]))  # 2 * 1 and 3 * 4, of 14, of half of 7


@pytest.mark.parametrize("residual_scale", [1.0, 2.0])
def test_no_relevance_is_lost_between_logit_and_first_block(residual_scale: float) -> None:
    model = small_lvvit(residual_scale=residual_scale).double()
    encoder = relevance._encoder_of(model)
    seen = relevance._record(encoder)
    with torch.no_grad():
        model.forward_tokens(draw_images(model.image_px).double())
        seen = {module: (given[:, None], gave[:, None]) for module, (given, gave) in seen.items()}
        features = seen[encoder.norm][1]
        flow = torch.zeros_like(features)  # (2 images, 1 class, tokens, width)
        one_hot = nn.functional.one_hot(torch.tensor([[3], [7]]), CLASSES).double()
        flow[:, :, 0] = linear_rule(encoder.head.weight, features[:, :, 0], one_hot)
        for block in reversed(encoder.blocks):
            flow, of_attention, _ = relevance._through_block(block, seen, flow, torch.zeros_like(features))
            torch.testing.assert_close(flow.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
            assert (of_attention != 0).any()


def test_residual_scale_is_the_same_as_smaller_weights() -> None:
    scaled = small_lvvit(residual_scale=2.0)
    plain = small_lvvit()
    for block in plain.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.data /= 2
            layer.bias.data /= 2
    images = draw_images(96)
    maps = relevance_maps(scaled, images, ASKED)
    torch.testing.assert_close(maps, relevance_maps(plain, images, ASKED), rtol=1e-4, atol=0)
    assert not torch.allclose(maps, relevance_maps(small_lvvit(), images, ASKED), rtol=1e-2)


def test_images_and_classes_do_not_disturb_each_other() -> None:
    model, images = small_lvvit(), draw_images(96)
    together = relevance_maps(model, images, ASKED)
    for image in range(2):
        for place in range(2):
            alone = relevance_maps(model, images[image : image + 1], ASKED[image : image + 1, place : place + 1])
            torch.testing.assert_close(alone[0, 0], together[image, place], rtol=1e-5, atol=0)
    assert torch.equal(together, relevance_maps(model, images, ASKED))


def test_model_is_left_as_it_was_even_in_inference_mode_and_frozen() -> None:
    model = small_lvvit(stochastic_depth=0.5).train()
    model.norm.eval()
    model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        maps = relevance_maps(model, draw_images(96), ASKED)
    assert torch.isfinite(maps).all()
    assert model.training
    assert not model.norm.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("build", [small_lvvit, deit_tiny])
def test_gradient_checkpointing_changes_nothing(build: Callable[[], TokenModel]) -> None:
    model = build()
    images = torch.randn(1, 3, model.image_px, model.image_px)
    plain = relevance_maps(model, images, torch.tensor([[0]]))
    model.set_grad_checkpointing()
    torch.testing.assert_close(relevance_maps(model.train(), images, torch.tensor([[0]])), plain)


@pytest.mark.parametrize("name", ["timm/deit_tiny_distilled_patch16_224", "timm/deit3_small_patch16_224", "t2t_vit_14"])
def test_relatives_have_maps_too(name: str) -> None:
    model = create_model(name, 3, 64, **({"depth": 2} if name.startswith("t2t") else {}))
    maps = relevance_maps(model, draw_images(64)[:1], torch.tensor([[2]]))
    assert maps.shape == (1, 1, *model.grid)
    assert torch.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("timm/resnet18", "it is a ResNet"), ("timm/vit_small_patch16_rope_224", "it is a Eva"),
     ("timm/vit_base_patch16_siglip_224", "pooling"), ("timm/vit_relpos_small_patch16_224", "it is a VisionTransformerRelPos")],
)  # fmt: skip
def test_other_models_are_refused_in_one_line(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 3, 224)
    with pytest.raises(ConfigError, match=reason) as caught:
        relevance_maps(model, torch.zeros(1, 3, 224, 224), torch.tensor([[0]]))
    assert "LV-ViT" in str(caught.value)
    assert "\n" not in str(caught.value)


COLOURS = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0], [2.0, 2.0, -1.0]])
SIDE, PATCH = 6, 8


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with two coloured squares of 2 x 2 patches, left and right.

    Returns:
        images (count, 3, 48, 48), the squares' classes (count, 2), and where they are, bool (count, 2, 6, 6).
    """
    images = 0.5 * torch.randn(count, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    classes = torch.rand(count, len(COLOURS), generator=generator).argsort(1)[:, :2]  # two different ones
    places = torch.zeros(count, 2, SIDE, SIDE, dtype=torch.bool)
    rows = torch.randint(0, SIDE - 1, (count, 2), generator=generator)
    cols = torch.randint(0, 2, (count, 2), generator=generator) + torch.tensor([0, 3])
    for image in range(count):
        for square in range(2):
            row, col = int(rows[image, square]), int(cols[image, square])
            places[image, square, row : row + 2, col : col + 2] = True
            images[image, :, row * PATCH : (row + 2) * PATCH, col * PATCH : (col + 2) * PATCH] += COLOURS[
                classes[image, square]
            ][:, None, None]
    return images, classes, places


@pytest.fixture(scope="module")
def colour_model() -> TokenModel:
    """Learns in a few seconds which two colours are in a picture; nothing tells it where they are."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = create_model(
        "lvvit_t", 4, SIDE * PATCH, depth=2, width=32, heads=2, stem_kernels=(PATCH,), stem_strides=(PATCH,)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        images, classes, _ = pictures(32, generator)
        target = nn.functional.one_hot(classes, 4).float().mean(1)
        loss = nn.functional.cross_entropy(model(images).class_logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_map_of_a_class_lies_on_its_object(colour_model: TokenModel) -> None:
    images, classes, places = pictures(40, torch.Generator().manual_seed(1))
    maps = relevance_maps(colour_model, images, classes)
    with torch.inference_mode():
        found = colour_model(images).topk(2).indices
    assert (found.sort(1).values == classes.sort(1).values).float().mean() > 0.9, "the model has not learned the task"

    def area_under_curve(values: Tensor, inside: Tensor) -> float:
        return float((values[inside][:, None] > values[~inside]).float().mean())

    areas = [area_under_curve(maps[image, k], places[image, k]) for image in range(40) for k in range(2)]
    assert np.mean(areas) > 0.8
    # one picture, two classes, two maps: each has more on its own square than on the other's
    own = torch.stack([maps[:, k][places[:, k]].reshape(40, -1).sum(1) for k in range(2)], 1)
    others = torch.stack([maps[:, k][places[:, 1 - k]].reshape(40, -1).sum(1) for k in range(2)], 1)
    assert (own > others).float().mean() > 0.8  # half of them by chance
