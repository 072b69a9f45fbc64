from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, TokenModel, create_model, draw_mix_box, load_checkpoint, save_weights
from tokenlabel.models.blocks import StochasticDepth
from tokenlabel.models.transformer import TokenTransformer, tokens_per_side

NAMES = ["lvvit_s", "t2t_vit_14", "t2t_vit_t_14"]
BOX = MixBox((1, 3), (0, 3), (4, 4))
Make = Callable[..., TokenTransformer]


def loss_of(model: TokenModel, images: Tensor, mix: MixBox | None = BOX) -> Tensor:
    output = model(images, mix)
    return output.class_logits.square().mean() + output.token_logits.square().mean()  # type: ignore[no-any-return]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


# ---- heads and features


@pytest.mark.parametrize("name", NAMES)
def test_features_and_head_are_the_eval_forward(name: str, tiny: Make) -> None:
    model = tiny(name, token_score_weight=0.25).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape == (2, 17, 24)
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 0])
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)  # after the final norm


def test_reset_classifier_replaces_both_heads(tiny: Make) -> None:
    model = tiny().eval().to(torch.float64)
    kept = copy.deepcopy(model.blocks.state_dict())
    model.reset_classifier(9)
    output = model.forward_tokens(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert (output.class_logits.shape, output.token_logits.shape) == ((2, 9), (2, 16, 9))
    assert model.num_classes == 9
    assert model.get_classifier() is model.head
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(value, kept[name]) for name, value in model.blocks.state_dict().items())
    with pytest.raises(ConfigError, match="num_classes is 0; a classifier needs at least 1"):
        model.reset_classifier(0)
    assert model.num_classes == 9


# ---- resolution


@pytest.mark.parametrize("name", NAMES)
def test_another_resolution_in_place(name: str, tiny: Make) -> None:
    model = tiny(name)
    names = list(model.state_dict())
    model.set_image_px(96)
    assert (model.image_px, model.grid) == (96, (6, 6))
    assert list(model.state_dict()) == names
    output = model.train()(torch.randn(2, 3, 96, 96), MixBox((1, 5), (0, 6), (6, 6)))
    assert output.token_logits.shape == (2, 36, 5)
    assert model.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\); this model takes \(batch, 3, 96, 96\)"):
        model(torch.randn(1, 3, 64, 64))
    with pytest.raises(
        ConfigError, match=r"image_px is 100; it must be a multiple of the token size 16 px\. Nearest: 96 or 112"
    ):
        model.set_image_px(100)
    assert model.image_px == 96


def test_another_resolution_interpolates_learned_positions(tiny: Make) -> None:
    """A ramp over the rows stays a ramp; the class token's position and whether it is trained stay as they were."""
    model = tiny(image_px=224)
    with torch.no_grad():
        model.pos_embed[0, 1:] = torch.arange(14.0).repeat_interleave(14)[:, None]
    class_position = model.pos_embed[:, 0].detach().clone()
    model.pos_embed.requires_grad_(False)
    model.set_image_px(448)
    assert isinstance(model.pos_embed, nn.Parameter)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[:, 0], class_position)
    rows = model.pos_embed[0, 1:, 0].view(28, 28)
    expected = (torch.arange(28) + 0.5) / 2 - 0.5  # pixel centres; torch's bicubic kernel bends a ramp by up to 0.047
    torch.testing.assert_close(rows[4:-4, 9], expected[4:-4], atol=0.05, rtol=0)
    assert (rows == rows[:, :1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_another_resolution_in_place_or_by_a_checkpoint_is_the_same(name: str, tiny: Make) -> None:
    model, larger = tiny(name), tiny(name, image_px=96)
    load_checkpoint(larger, model.state_dict())
    model.to(torch.float64).set_image_px(96)
    assert model.pos_embed.dtype == torch.float64
    torch.testing.assert_close(model.pos_embed.float(), larger.pos_embed)


@pytest.mark.parametrize(
    ("image_px", "nearest"), [(70, "64 or 80"), (15, "16"), (0, "16"), (-3, "16"), (17, "16 or 32")]
)
def test_the_nearest_legal_sides_are_named(image_px: int, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"image_px is {image_px}; .* token size 16 px\. Nearest: {nearest}$"):
        tokens_per_side(image_px, 16)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 4, 64, 64), (2, 3, 64, 80), (3, 64, 64)], ids=str)
def test_images_of_other_channels_or_size_are_refused_in_one_line(shape: tuple[int, ...], tiny: Make) -> None:
    model = tiny()
    for forward in (model, model.forward_features):
        with pytest.raises(ValueError, match=r"^images .* are \(.*\); this model takes \(batch, 3, 64, 64\).*$"):
            forward(torch.zeros(shape))


# ---- stochastic depth


@pytest.mark.parametrize("name", ["lvvit_s", pytest.param("t2t_vit_14", marks=pytest.mark.campaign)])
@pytest.mark.parametrize(("rule", "rates"), [("linear", [0.0, 0.1, 0.2, 0.3]), ("fixed", [0.3] * 4)])
def test_rules_of_stochastic_depth(name: str, rule: str, rates: list[float], tiny: Make) -> None:
    model = tiny(name, depth=4, stochastic_depth=0.3, stochastic_depth_rule=rule)
    assert [module.rate for module in model.modules() if isinstance(module, StochasticDepth)] == pytest.approx(rates)


def test_an_unknown_rule_of_stochastic_depth_is_refused(tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"unknown stochastic_depth_rule 'fix'\. Did you mean 'fixed'"):
        tiny(stochastic_depth_rule="fix")


# ---- gradient checkpointing


@pytest.mark.parametrize("name", NAMES)
def test_recomputation_changes_no_gradient_and_saves_memory(name: str, tiny: Make) -> None:
    """Bit for bit, with stochastic depth and dropout drawn from the same generator."""
    stem = {"stem_channels": 4} if name == "lvvit_s" else {}  # the convolutions' own activations are kept
    model = tiny(name, depth=6, width=96, stochastic_depth=0.5, **stem).train()
    images = torch.randn(4, 3, 64, 64)

    def step(enable: bool) -> tuple[dict[str, Tensor], int]:
        replica = copy.deepcopy(model)
        replica.set_grad_checkpointing(enable)
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = loss_of(replica, images)
        loss.backward()  # type: ignore[no-untyped-call]
        return gradients(replica), sum(saved.values())

    (plain, plain_bytes), (recomputed, recomputed_bytes) = step(False), step(True)
    assert plain.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(value, recomputed[entry]) for entry, value in plain.items())
    assert recomputed_bytes < 0.5 * plain_bytes


def test_recomputation_leaves_eval_alone(tiny: Make) -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    model.set_grad_checkpointing()
    assert torch.equal(model(images), expected)
    model.set_grad_checkpointing(False)
    assert not model.train().recomputes


# ---- torch.compile and torch.export


def check_compiled(model: TokenTransformer, backend: str) -> None:
    torch._dynamo.reset()
    images = torch.randn(3, 3, 64, 64)
    replica = copy.deepcopy(model)
    compiled = torch.compile(replica, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images), model.eval()(images), atol=1e-5, rtol=1e-5)
    compiled.train()
    loss, expected = loss_of(compiled, images), loss_of(model.train(), images)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for name, value in gradients(model).items():
        torch.testing.assert_close(gradients(replica)[name], value, atol=1e-5, rtol=1e-4, msg=name)


DROPOUT = {"lvvit_s": {}, "t2t_vit_14": {"token_dropout": 0.0}, "t2t_vit_t_14": {}}


@pytest.mark.parametrize(
    ("name", "recompute", "backend"),
    [
        # tracing and differentiation alone; what needs a C++ compiler, or minutes, is for the campaign
        ("lvvit_s", False, "aot_eager"),
        *(
            pytest.param(name, recompute, backend, marks=pytest.mark.campaign)
            for name in NAMES
            for recompute in (False, True)
            for backend in ("aot_eager", "inductor")
        ),
    ],
)
def test_compiles_whole(name: str, recompute: bool, backend: str, tiny: Make) -> None:
    model = tiny(name, depth=1, **DROPOUT[name])
    model.set_grad_checkpointing(recompute)
    check_compiled(model, backend)


def test_boxes_do_not_compile_anew(tiny: Make) -> None:
    """The first other box makes its edges symbols of the compiled code; then every box runs through it."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = tiny(image_px=224, depth=1).train()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    rng, images = random.Random(0), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for _ in range(20):
            compiled(images, draw_mix_box((14, 14), 1.0, rng))
    assert counter.frame_count <= 3


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_exports_with_any_batch(name: str, tiny: Make, tmp_path: Path) -> None:
    model = tiny(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program: Any = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"images": {0: batch}})
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    other = tiny(name).eval()  # other weights: the program takes the model's names
    loaded.load_state_dict(other.state_dict(), strict=True)
    for size in (1, 5):
        images = torch.randn(size, 3, 64, 64)
        torch.testing.assert_close(loaded(images), other(images), atol=1e-5, rtol=1e-5)


# ---- the layout of the convolutional stem


def test_the_stem_runs_channels_last_and_keeps_its_weights(tiny: Make, tmp_path: Path) -> None:
    model = tiny().train()
    seen: list[Tensor] = []
    for index in (1, 2, 3):
        model.get_submodule(f"patch_embed.conv{index}").register_forward_hook(lambda _m, _i, out: seen.append(out))
    model.get_submodule("patch_embed.proj").register_forward_hook(lambda _m, _i, out: seen.append(out))
    images = torch.randn(2, 3, 64, 64)
    loss_of(model, images).backward()  # type: ignore[no-untyped-call]
    assert len(seen) == 4
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)
    assert images.is_contiguous()  # the caller's own tensor is left alone
    # as optimisers, weight averages, DistributedDataParallel's buckets and safetensors want them
    assert all(value.is_contiguous() for value in model.state_dict().values())
    assert all(value.is_contiguous() for value in gradients(model).values())
    save_weights(model, tmp_path / "model.safetensors", {})
    again = tiny()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_the_stem_gives_the_numbers_of_contiguous_convolutions(tiny: Make) -> None:
    stem = create_model("lvvit_s", 5, 64, depth=1).patch_embed.double()  # type: ignore[operator,union-attr]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = images
    for index in (1, 2, 3):
        norm = stem.get_submodule(f"bn{index}")
        expected = torch.relu(norm(stem.get_submodule(f"conv{index}")(expected)))
    expected = stem.get_submodule("proj")(expected).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(images), expected, atol=1e-10, rtol=0)
