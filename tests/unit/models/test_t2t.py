from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, TokenModel, count_parameters, create_model
from tokenlabel.models.t2t import PerformerLayer, _ValueSkipAttention, sinusoid_positions


@pytest.mark.parametrize(
    ("name", "millions"), [("t2t_vit_14", 21.5), ("t2t_vit_19", 39.2), ("t2t_vit_24", 64.1)], ids=str
)
@pytest.mark.parametrize("token_module", ["performer", "transformer"])
def test_parameters_are_those_of_the_t2t_paper(name: str, millions: float, token_module: str) -> None:
    with torch.device("meta"):
        model = create_model(name, token_module=token_module)
    without_token_head = count_parameters(model) - count_parameters(model.get_submodule("aux_head"))
    assert without_token_head / 1e6 == pytest.approx(millions, rel=1e-2)


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
