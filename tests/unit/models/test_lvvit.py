from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.models import MixBox, TokenModel, TokenOutput, count_multiply_adds, count_parameters, create_model
from tokenlabel.models.lvvit import LVVIT_PRESETS, ConvolutionalStem, interpolate_position_embedding
from tokenlabel.models.transformer import StochasticDepth

# The published models: depth, width, stem channels, side of the image at which they were trained
PUBLISHED = {
    "lvvit_t": (12, 240, 64, 224),
    "lvvit_s": (16, 384, 64, 224),
    "lvvit_m": (20, 512, 64, 224),
    "lvvit_l": (24, 768, 128, 288),
}


def listed_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published LV-ViT-S checkpoint, in its order."""
    listing = json.loads((Path(__file__).parent / "lvvit_s_state_dict.json").read_text())
    blocks = {
        f"blocks.{index}.{name}": shape
        for index in range(listing["blocks"])
        for name, shape in listing["block"].items()
    }
    return {name: tuple(shape) for name, shape in (listing["before"] | blocks | listing["after"]).items()}


def derived_shapes(depth: int, width: int, channels: int, image_px: int) -> dict[str, tuple[int, ...]]:
    """The same for any size, written out from its numbers."""
    hidden, tokens = 3 * width, (image_px // 16) ** 2
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + tokens, width)}
    for index, (source, kernel) in enumerate(((3, 7), (channels, 3), (channels, 3)), start=1):
        shapes[f"patch_embed.conv{index}.weight"] = (channels, source, kernel, kernel)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"patch_embed.bn{index}.{entry}"] = (channels,)
        shapes[f"patch_embed.bn{index}.num_batches_tracked"] = ()
    shapes |= {"patch_embed.proj.weight": (width, channels, 8, 8), "patch_embed.proj.bias": (width,)}
    for index in range(depth):
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for head in ("head", "aux_head"):
        shapes |= {f"{head}.weight": (1000, width), f"{head}.bias": (1000,)}
    return shapes


def test_the_rule_that_gives_the_sizes_gives_the_published_listing_of_s() -> None:
    assert list(derived_shapes(*PUBLISHED["lvvit_s"]).items()) == list(listed_shapes().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_order_are_the_published_ones(name: str) -> None:
    shapes = derived_shapes(*PUBLISHED[name])
    with torch.device("meta"):
        model = create_model(name, image_px=PUBLISHED[name][-1])
    assert [(entry, tuple(value.shape)) for entry, value in model.state_dict().items()] == list(shapes.items())
    model.load_state_dict({entry: torch.zeros(shape, device="meta") for entry, shape in shapes.items()}, strict=True)


GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("tiny", {"residual_scale": 1.0}),
        ("small", {"residual_scale": 2.0}),
        ("large", {"residual_scale": 3.0, "stem_channels": 128}),
    ],
)
def test_outputs_are_those_of_the_released_code(case: str, settings: dict[str, Any]) -> None:
    """Eval and training with a MixToken box, to 1e-5; the answers are the released model's own (make_released_lvvit.py)."""
    script = runpy.run_path(str(GOLDEN / "make_released_lvvit.py"))
    answers = np.load(GOLDEN / "released_lvvit.npz")
    model = create_model("lvvit_s", 7, 64, depth=3, width=48, heads=4, **settings)
    model.load_state_dict(
        script["released_weights"]({name: tuple(value.shape) for name, value in model.state_dict().items()})
    )
    images = script["released_images"]()
    top, left, bottom, right = script["BOX"]
    with torch.no_grad():
        logits = model.eval()(images)
        output = model.train()(images, MixBox((top, bottom), (left, right), (4, 4)))
        unmixed = model(images)
    assert np.abs(answers[f"{case}_eval"]).max() > 1  # else an absolute tolerance would say little
    for found, kind in ((logits, "eval"), (output.class_logits, "class"), (output.token_logits, "tokens")):
        torch.testing.assert_close(found, torch.from_numpy(answers[f"{case}_{kind}"]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(unmixed.token_logits, output.token_logits, atol=1e-2)


# Measured on the released models with fvcore: parameters in millions, multiply-adds in 10^9.
RELEASED = [
    ("lvvit_t", 224, 8.535, 2.88),
    ("lvvit_s", 224, 26.152, 6.57),
    ("lvvit_s", 384, 26.298, 21.95),
    ("lvvit_m", 224, 55.831, 12.70),
    ("lvvit_m", 384, 56.025, 41.71),
    ("lvvit_l", 288, 150.120, 58.77),
    ("lvvit_l", 448, 150.474, 155.30),
    ("lvvit_l", 512, 150.658, 211.86),
]


@pytest.mark.parametrize(("name", "image_px", "millions", "_giga"), RELEASED)
def test_parameters_are_those_of_the_released_models(name: str, image_px: int, millions: float, _giga: float) -> None:
    with torch.device("meta"):
        model = create_model(name, image_px=image_px)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "image_px", "_millions", "giga"),
    # one forward of the two largest takes many seconds and a gigabyte
    [pytest.param(*row, marks=pytest.mark.campaign if row[3] > 100 else ()) for row in RELEASED],
)
def test_multiply_adds_are_those_of_the_released_models(
    name: str, image_px: int, _millions: float, giga: float
) -> None:
    with torch.device("meta"):
        model = create_model(name, image_px=image_px)
    assert count_multiply_adds(model, image_px) / 1e9 == pytest.approx(giga, rel=1e-2)


@pytest.mark.parametrize(("name", "image_px", "_millions", "giga"), RELEASED)
def test_pytorchs_own_counter_agrees(name: str, image_px: int, _millions: float, giga: float) -> None:
    """Counts matrix products and convolutions only (norms are 0.3 % of all), for every size without computing."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        create_model(name, image_px=image_px).eval()(torch.zeros(1, 3, image_px, image_px))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=1e-2)


@pytest.mark.parametrize(
    ("kernels", "strides"),
    [((7, 8), (2, 8)), ((7, 3, 8), (2, 2, 4)), ((7, 3, 8), (2, 1, 8)), ((7, 3, 3, 8), (2, 1, 1, 8)), ((16,), (16,))],
)
@pytest.mark.parametrize("side", [2, 5])
def test_stem_gives_one_token_per_total_stride(kernels: tuple[int, ...], strides: tuple[int, ...], side: int) -> None:
    stem = ConvolutionalStem(6, kernels, strides, 4)
    assert stem(torch.zeros(1, 3, 16 * side, 16 * side)).shape == (1, side * side, 6)
    assert ("conv1.weight" in stem.state_dict()) == (len(kernels) > 1)


def reference_forward(state: dict[str, Tensor], images: Tensor, depth: int, heads: int, scale: float) -> Tensor:
    """The published eval forward, written out from the state dict alone."""
    x = images
    for i in (1, 2, 3):
        kernel = state[f"patch_embed.conv{i}.weight"]
        x = F.conv2d(x, kernel, stride=2 if i == 1 else 1, padding=kernel.shape[-1] // 2)
        mean, variance = (state[f"patch_embed.bn{i}.running_{what}"][:, None, None] for what in ("mean", "var"))
        weight, bias = (state[f"patch_embed.bn{i}.{what}"][:, None, None] for what in ("weight", "bias"))
        x = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((state["cls_token"].expand(len(x), -1, -1), x), 1) + state["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].t() + state.get(f"{name}.bias", torch.zeros(()))

    for i in range(depth):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        parts = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            parts.append(torch.softmax(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5, -1) @ c)
        x = x + linear(torch.cat(parts, -1), f"blocks.{i}.attn.proj") / scale
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2") / scale
    x = norm(x, "norm")
    return linear(x[:, 0], "head") + 0.5 * linear(x[:, 1:], "aux_head").max(1)[0]


@pytest.mark.parametrize(("name", "scale"), [("lvvit_t", 1.0), ("lvvit_s", 2.0), ("lvvit_m", 2.0), ("lvvit_l", 3.0)])
def test_eval_forward_is_the_published_one(name: str, scale: float, tiny: Callable[..., TokenModel]) -> None:
    model = tiny(name).double().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_(std=0.3).abs_()  # batch statistics and norms as far from 0 and 1 as after a training
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        expected = reference_forward(dict(model.state_dict()), images, depth=2, heads=2, scale=scale)
        torch.testing.assert_close(model(images), expected)


def test_eval_adds_the_best_token_logit(tiny: Callable[..., TokenModel]) -> None:
    model = tiny(token_score_weight=0.25).eval()
    images = torch.randn(2, 3, 64, 64)
    output = model.forward_tokens(images)
    assert isinstance(output, TokenOutput)
    assert output.grid == (4, 4)
    torch.testing.assert_close(model(images), output.class_logits + 0.25 * output.token_logits.amax(1))


def test_training_step_reaches_every_parameter(tiny: Callable[..., TokenModel]) -> None:
    model = tiny(stochastic_depth=0.0).train()
    output = model(torch.randn(3, 3, 64, 64))
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_bfloat16_autocast(tiny: Callable[..., TokenModel]) -> None:
    model = tiny().train()
    images = torch.randn(3, 3, 64, 64)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.token_logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.token_logits.float(), exact.token_logits, atol=0.05, rtol=0.05)


def test_initialisation_is_a_truncated_normal_of_std_002() -> None:
    model = create_model("lvvit_s", 100, 64, depth=1)
    state = model.state_dict()
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "head.weight", "aux_head.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.05), name
    assert not state["head.bias"].any()
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.1)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean(tiny: Callable[..., TokenModel]) -> None:
    model = tiny(depth=5, stochastic_depth=0.4)
    rates = [module.rate for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    drop = StochasticDepth(0.4)
    dropped = drop(torch.ones(5000, 2, 3))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))  # whole images
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.06)
    assert torch.equal(drop.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))


def test_position_interpolation_keeps_class_token_and_axes() -> None:
    rows, cols = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    places = torch.stack((rows, cols), dim=-1).reshape(1, 196, 2)  # two channels: the row and the column of each token
    state = {"pos_embed": torch.cat((torch.full((1, 1, 2), 7.0), places), 1), "other": torch.ones(1)}
    resized = interpolate_position_embedding(state, (28, 28))
    assert torch.equal(resized["pos_embed"][:, 0], state["pos_embed"][:, 0])
    assert resized["other"] is state["other"]
    grid = resized["pos_embed"][0, 1:].view(28, 28, 2)
    inner = (torch.arange(28) + 0.5) / 2 - 0.5  # of pixel centres; torch's bicubic kernel bends a ramp by up to 0.047
    torch.testing.assert_close(grid[4:-4, 10, 0], inner[4:-4], atol=0.05, rtol=0)
    torch.testing.assert_close(grid[10, 4:-4, 1], inner[4:-4], atol=0.05, rtol=0)
    assert interpolate_position_embedding(state, (14, 14))["pos_embed"] is state["pos_embed"]


def test_position_interpolation_is_bicubic() -> None:
    peak = torch.zeros(1, 1 + 49, 1)
    peak[0, 1 + 24] = 1.0  # the centre of 7 x 7
    resized = interpolate_position_embedding({"pos_embed": peak}, (14, 14))["pos_embed"][0, 1:].view(14, 14)
    assert (resized < -1e-3).any()  # bilinear interpolation never goes below its data
    torch.testing.assert_close(resized, resized.flip(0))
    torch.testing.assert_close(resized, resized.t())


def test_position_interpolation_refuses_what_is_no_square() -> None:
    with pytest.raises(CheckpointError, match="square"):
        interpolate_position_embedding({"pos_embed": torch.zeros(1, 8, 4)}, (4, 4))
    with pytest.raises(CheckpointError, match="no position embedding"):
        interpolate_position_embedding({}, (4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_px": 70}, r"multiple of the token size 16 px\. Nearest: 64 or 80"),
        ({"heads": 5}, "divisor"),
        ({"depth": 0}, "depth is 0"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
        ({"residual_scale": 0.0}, "residual_scale"),
        ({"stem_kernels": (7, 8)}, "equally long"),
        ({"stem_kernels": (7, 4), "stem_strides": (2, 8)}, "kernel 4 with stride 8"),
        ({"stem_kernels": (16, 2), "stem_strides": (16, 1)}, "kernel 2 with stride 1"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, Any], message: str, tiny: Callable[..., TokenModel]
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**settings)


def test_presets_are_table_1() -> None:
    table = {name: (row["depth"], row["width"], row["mlp_ratio"], row["heads"]) for name, row in LVVIT_PRESETS.items()}
    assert table == {
        "lvvit_t": (12, 240, 3.0, 4),
        "lvvit_s": (16, 384, 3.0, 6),
        "lvvit_m": (20, 512, 3.0, 8),
        "lvvit_l": (24, 768, 3.0, 12),
    }
