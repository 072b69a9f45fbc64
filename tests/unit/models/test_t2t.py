from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, TokenModel, count_multiply_adds, count_parameters, create_model
from tokenlabel.models.t2t import PerformerLayer, _ValueSkipAttention, sinusoid_positions

# T2T paper and the authors' page: depth, width, millions of parameters, 10^9 multiply-adds at 224 px
PUBLISHED = {
    "t2t_vit_14": (14, 384, 21.5, 4.8),
    "t2t_vit_19": (19, 448, 39.2, 8.5),
    "t2t_vit_24": (24, 512, 64.1, 13.8),
    "t2t_vit_t_14": (14, 384, 21.5, 6.1),
    "t2t_vit_t_19": (19, 448, 39.2, 9.8),
    "t2t_vit_t_24": (24, 512, 64.1, 15.0),
}


def authors_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the T2T authors' checkpoints, which have no token head."""
    depth, width, *_ = PUBLISHED[name]
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width)}

    def linear(layer: str, source: int, target: int, bias: bool = True) -> None:
        shapes[f"{layer}.weight"] = (target, source)
        if bias:
            shapes[f"{layer}.bias"] = (target,)

    def norm(layer: str, channels: int) -> None:
        shapes.update({f"{layer}.weight": (channels,), f"{layer}.bias": (channels,)})

    for layer, source in (("tokens_to_token.attention1", 3 * 7 * 7), ("tokens_to_token.attention2", 64 * 3 * 3)):
        norm(f"{layer}.norm1", source)
        norm(f"{layer}.norm2", 64)
        if "_t_" in name:
            linear(f"{layer}.attn.qkv", source, 3 * 64, bias=False)
            linear(f"{layer}.attn.proj", 64, 64)
            linear(f"{layer}.mlp.fc1", 64, 64)
            linear(f"{layer}.mlp.fc2", 64, 64)
        else:
            shapes[f"{layer}.w"] = (32, 64)
            linear(f"{layer}.kqv", source, 3 * 64)
            linear(f"{layer}.proj", 64, 64)
            linear(f"{layer}.mlp.0", 64, 64)
            linear(f"{layer}.mlp.2", 64, 64)
    linear("tokens_to_token.project", 64 * 3 * 3, width)
    for index in range(depth):
        norm(f"blocks.{index}.norm1", width)
        linear(f"blocks.{index}.attn.qkv", width, 3 * width, bias=False)
        linear(f"blocks.{index}.attn.proj", width, width)
        norm(f"blocks.{index}.norm2", width)
        linear(f"blocks.{index}.mlp.fc1", width, 3 * width)
        linear(f"blocks.{index}.mlp.fc2", 3 * width, width)
    norm("norm", width)
    linear("head", width, 1000)
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_parameters_are_the_authors(name: str) -> None:
    """They count the fixed positions and random features among the parameters, and have no token head."""
    with torch.device("meta"):
        model = create_model(name)
    shapes = authors_shapes(name)
    own = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
    token_head = {"aux_head.weight": (1000, model.width), "aux_head.bias": (1000,)}
    assert own == shapes | token_head
    state = {entry: torch.zeros(shape, device="meta") for entry, shape in shapes.items()}
    assert tuple(model.load_state_dict(state, strict=False)) == (list(token_head), [])
    millions = sum(math.prod(shape) for shape in shapes.values()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name][2], abs=0.0501)  # as printed, to one digit
    fixed = sum(math.prod(shape) for entry, shape in shapes.items() if entry == "pos_embed" or entry.endswith(".w"))
    added = sum(math.prod(shape) for shape in token_head.values())
    assert count_parameters(model) == round(millions * 1e6) - fixed + added


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_those_of_the_authors(name: str) -> None:
    """Without the token head; t2t_vit_24 is printed 13.8 where 13.69 are counted, the others agree to the digit."""
    with torch.device("meta"):
        model = create_model(name)
    token_head = 196 * model.width * 1000
    assert (count_multiply_adds(model, 224) - token_head) / 1e9 == pytest.approx(PUBLISHED[name][3], rel=1e-2)


@pytest.mark.parametrize("token_module", ["performer", "transformer"])
def test_outputs_are_those_of_the_authors_code(token_module: str) -> None:
    """To 1e-5, with the attention scale of their pretrained models (make_released_t2t.py)."""
    golden = Path(__file__).parents[2] / "golden"
    script = runpy.run_path(str(golden / "make_released_lvvit.py"))
    settings = {"depth": 3, "width": 48, "heads": 4, "token_module": token_module, "token_score_weight": 0.0}
    images, answers = script["released_images"](), np.load(golden / "released_t2t.npz")
    outputs = {}
    for scale in (48**-0.5, None):
        model = create_model("t2t_vit_14", 7, 64, attention_scale=scale, **settings).eval()
        names = {name: tuple(value.shape) for name, value in model.state_dict().items() if "aux_head" not in name}
        drawn = script["released_weights"](names)
        model.load_state_dict({**model.state_dict(), **drawn, "pos_embed": model.pos_embed})
        with torch.no_grad():
            outputs[scale] = model(images)
    expected = torch.from_numpy(answers[token_module])
    assert expected.abs().max() > 1  # else an absolute tolerance would say little
    torch.testing.assert_close(outputs[48**-0.5], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs[None], expected, atol=1e-2)


@pytest.mark.parametrize("token_module", ["performer", "transformer"])
def test_forward_in_both_modes(token_module: str, tiny: Callable[..., TokenModel]) -> None:
    model = tiny("t2t_vit_14", token_module=token_module)
    images = torch.randn(3, 3, 64, 64)
    output = model.train()(images, MixBox((0, 2), (1, 4), (4, 4)))
    assert output.class_logits.shape == (3, 5)
    assert output.token_logits.shape == (3, 16, 5)
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
    assert model.eval()(images).shape == (3, 5)


def test_tokens_follow_the_grid_of_the_image(tiny: Callable[..., TokenModel]) -> None:
    """A bright corner must show in the token of that corner: rows and columns are not exchanged on the way."""
    model = tiny("t2t_vit_14", image_px=128).eval()
    blank = torch.zeros(1, 3, 128, 128)
    bright = blank.clone()
    bright[:, :, 4:12, 116:124] = 5.0  # inside token row 0, column 7
    with torch.no_grad():
        # The first layer's attention is global: cut it, so that only the soft splits carry the change.
        for layer in ("attention1", "attention2"):
            torch.nn.init.zeros_(model.get_submodule(f"tokens_to_token.{layer}.proj").weight)  # type: ignore[arg-type]
        change = (model.embed_patches(bright) - model.embed_patches(blank)).norm(dim=-1).view(8, 8)  # type: ignore[operator]
    assert divmod(int(change.argmax()), 8) == (0, 7)
    assert change[4:].abs().max() == 0


def test_performer_approximates_softmax_attention() -> None:
    """With many random features the kernel's mean is exp(q k), so the output nears softmax(q k) v."""
    torch.manual_seed(1)
    layer = PerformerLayer(8, 8, dropout=0.0)
    layer.w = torch.randn(200_000, 8)
    query, key, value = (0.5 * torch.randn(1, 6, 8) for _ in range(3))
    expected = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
    torch.testing.assert_close(layer._attend(query, key, value), expected, atol=0.03, rtol=0)


def test_softmax_layer_scales_by_the_input_width_and_skips_from_the_values() -> None:
    layer = _ValueSkipAttention(27, 4)
    tokens = torch.randn(2, 6, 27)
    query, key, value = layer.qkv(tokens).chunk(3, dim=-1)
    mixed = torch.softmax(query @ key.transpose(1, 2) / 27**0.5, dim=-1) @ value
    torch.testing.assert_close(layer(tokens), value + layer.proj(mixed))


def test_random_features_are_orthogonal_and_saved() -> None:
    layer = PerformerLayer(8, 64, dropout=0.0)
    torch.testing.assert_close(layer.w @ layer.w.t(), 32 * torch.eye(32), atol=1e-4, rtol=0)
    assert "w" in layer.state_dict()
    assert "w" not in dict(layer.named_parameters())


def test_bfloat16_autocast(tiny: Callable[..., TokenModel]) -> None:
    model = tiny("t2t_vit_14", token_dropout=0.0).train()
    images = torch.randn(2, 3, 64, 64)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    torch.testing.assert_close(output.token_logits.float(), exact.token_logits, atol=0.05, rtol=0.05)


def test_sinusoid_positions() -> None:
    positions = sinusoid_positions(5, 8)[0]
    assert positions[3, 0].item() == pytest.approx(math.sin(3))
    assert positions[3, 1].item() == pytest.approx(math.cos(3))
    assert positions[3, 6].item() == pytest.approx(math.sin(3 / 10_000 ** (6 / 8)))


def test_settings_that_do_not_fit_are_refused(tiny: Callable[..., TokenModel]) -> None:
    with pytest.raises(ConfigError, match=r"multiple of the token size 16 px\. Nearest: 64 or 80"):
        tiny("t2t_vit_14", image_px=72)
    with pytest.raises(ConfigError, match="Did you mean 'performer'"):
        tiny("t2t_vit_14", token_module="preformer")
