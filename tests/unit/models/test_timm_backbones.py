from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from bench.timm_architectures import families, run_of, small_one
from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, create_model
from tokenlabel.models.timm_backbones import TimmTokenModel


def make(name: str, image_px: int = 224, num_classes: int = 7, **settings: float) -> TimmTokenModel:
    model = create_model(f"timm/{name}", num_classes, image_px, **settings)
    assert isinstance(model, TimmTokenModel)
    return model


@pytest.mark.sampled(2)
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
    model = make(name, image_px, token_score_weight=0.5)
    assert model.grid == grid
    assert (model.embedding_layout.grid if model.embedding_layout else None) == embedding_grid
    images = torch.randn(2, 3, image_px, image_px)
    output = model.train()(images, MixBox((0, 1), (1, 3), grid))
    assert output.class_logits.shape == (2, 7)
    assert output.token_logits.shape == (2, grid[0] * grid[1], 7)
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        best = model.eval().forward_tokens(images).token_logits.amax(1)
        logits = model(images)
        torch.testing.assert_close(logits, model.backbone(images) + 0.5 * best)  # timm's own logits
        features = model.forward_features(images)
        torch.testing.assert_close(logits, model.forward_head(features))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "image_px", "axes", "prefix", "grid", "embedding"),
    [
        ("deit_tiny_distilled_patch16_224", 224, "NLC", 2, 14, 14),  # two prefix tokens and two heads
        ("vit_wee_patch16_reg1_gap_256", 256, "NLC", 1, 16, 16),  # a register token, pooled without a class token
        ("vit_base_patch16_siglip_gap_256", 256, "NLC", 0, 16, 16),
        ("cait_xxs24_224", 224, "NLC", 1, 14, 14),  # the class token joins after the patch blocks
        ("beit_base_patch16_224", 224, "NLC", 1, 14, 14),
        ("eva02_tiny_patch14_224", 224, "NLC", 1, 16, 16),
        ("xcit_nano_12_p16_224", 224, "NLC", 1, 14, 14),  # its patch embedding gives a tuple
        ("volo_d1_224", 224, "NLC", 1, 14, 28),
        ("resmlp_12_224", 224, "NLC", 0, 14, 14),
        ("gmlp_ti16_224", 224, "NLC", 0, 14, 14),
        ("hiera_tiny_224", 224, "NLC", 0, 7, 56),
        ("mvitv2_tiny", 224, "NLC", 0, 7, 56),
        ("twins_svt_small", 224, "NLC", 0, 7, 56),
        ("swin_tiny_patch4_window7_224", 224, "NHWC", 0, 7, 56),
        ("swinv2_cr_tiny_224", 224, "NCHW", 0, 7, 56),  # its patch embedding takes one size only
        ("pvt_v2_b0", 224, "NCHW", 0, 7, 56),
        ("efficientvit_m0", 224, "NCHW", 0, 4, None),  # 14 x 14 patches are merged, rounded up, at its own size
        ("resnest50d", 224, "NCHW", 0, 7, None),
        ("convnext_atto", 224, "NCHW", 0, 7, None),
        ("convmixer_768_32", 224, "NCHW", 0, 32, None),
        ("fastvit_t8", 256, "NCHW", 0, 8, None),
        ("maxvit_tiny_tf_224", 224, "NCHW", 0, 7, None),
        ("mobilenetv3_large_100", 224, "NCHW", 0, 7, None),
    ],
)
def test_layouts(name: str, image_px: int, axes: str, prefix: int, grid: int, embedding: int | None) -> None:
    with torch.device("meta"):
        model = make(name, image_px)
        output = model.train()(torch.zeros(2, 3, image_px, image_px), MixBox((0, 1), (1, 3), model.grid))
    assert (model.layout.axes, model.layout.prefix, model.grid) == (axes, prefix, (grid, grid))
    assert (model.embedding_layout.grid[0] if model.embedding_layout else None) == embedding
    assert output.class_logits.shape == (2, 7)
    assert output.token_logits.shape == (2, grid * grid, 7)


def influence(logits: Tensor, images: Tensor) -> Tensor:
    """Float (batch, height, width): how much each pixel of each image moves the logits."""
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return gradient.abs().sum(1)


def widened(mask: Tensor, by_px: int) -> Tensor:
    """The mask (height, width) and everything nearer to it than `by_px`."""
    return torch.nn.functional.max_pool2d(mask[None].float(), 2 * by_px + 1, 1, by_px)[0] > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "image_px", "overlap_px"),
    [
        ("deit_tiny_distilled_patch16_224", 64, 0),
        ("mixer_s16_224", 64, 0),
        ("xcit_nano_12_p16_224", 160, 16),  # patches by overlapping convolutions
        ("swin_tiny_patch4_window7_224", 128, 0),  # 32 x 32 patches, 4 x 4 tokens
        ("volo_d1_224", 128, 12),  # 16 x 16 patches, 8 x 8 tokens, overlapping convolutions
        ("pvt_v2_b0", 128, 4),  # as many channels as rows: 32
        ("resnet18", 128, 0),
        ("convnext_atto", 128, 0),
    ],
)
def test_mixed_images_are_seen_inside_the_box_only(name: str, image_px: int, overlap_px: int) -> None:
    """Of the partner nothing outside the box counts, of the image itself nothing inside; for both kinds of mixing."""
    check_mixing(make(name, image_px), overlap_px)


def check_mixing(model: TimmTokenModel, overlap_px: int) -> None:
    torch.manual_seed(0)
    model.backbone.eval()  # batch statistics would tie the images together
    for head in model.head_names:  # Mixer's starts at zero
        torch.nn.init.normal_(model.get_submodule(head).weight)  # type: ignore[arg-type]
    rows, cols = model.grid
    box = MixBox((rows // 2, rows), (0, max(1, cols // 4)), model.grid)
    images = torch.randn(2, 3, model.image_px, model.image_px, requires_grad=True)
    own, partner = influence(model(images, box).class_logits[0], images)
    pixels = box.scaled((model.image_px, model.image_px))
    inside = torch.zeros(model.image_px, model.image_px, dtype=torch.bool)
    inside[pixels.rows[0] : pixels.rows[1], pixels.cols[0] : pixels.cols[1]] = True
    outside, inside = ~widened(inside, overlap_px), ~widened(~inside, overlap_px)
    assert own[inside].max() == 0
    assert partner[outside].max() == 0
    assert own[outside].max() > 0
    assert partner[inside].max() > 0


# with random weights their tokens look nearly evenly at everything, or at almost nothing
DIFFUSE = {"efficientformer", "visformer", "xception_aligned", "xcit"}


@pytest.mark.campaign  # a quarter of an hour
@pytest.mark.parametrize("family", families())
def test_every_family_works_or_says_why(family: str) -> None:
    (name,) = small_one(families()[family])
    row = run_of(name)
    if "reason" in row:
        assert re.search(r"as features; a token model|gives features of shape|does not support", row["reason"])
        assert "\n" not in row["reason"]
        return
    assert row["works"]
    if row["checked"] == "numbers":
        model = make(name, row["image_px"])
        if family not in DIFFUSE:
            assert row["cells_off"] <= max(1, model.grid[0] // 5)  # a token looks at its own place first
        if family != "vision_transformer_hybrid":  # its patch embedding is a whole ResNet, which sees far
            check_mixing(model, 16)


def test_token_logits_return_to_the_image_they_came_from() -> None:
    """With blocks that are the identity, a token's logits are those of its own patch, wherever it was computed."""
    model = make("deit_tiny_patch16_224", 64)
    model.backbone.blocks = torch.nn.Identity()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        plain, mixed = model(images).token_logits, model(images, MixBox((1, 3), (0, 2), (4, 4))).token_logits
    torch.testing.assert_close(mixed, plain)
    assert not torch.allclose(plain, plain.flip(0))


def test_volo_scores_as_timm_does_with_its_own_token_head() -> None:
    """Published VOLO adds half of its best token logit in eval mode; so do we, with its aux_head as token head."""
    torch.manual_seed(0)
    theirs = timm.create_model("volo_d1_224", num_classes=7, img_size=64).eval()
    model = make("volo_d1_224", 64, token_score_weight=0.5)
    model.load_state_dict(model.adapt_names(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), theirs(images))
    assert model.head_names == ("backbone.head", "token_head")
    model.reset_classifier(3)  # timm's would bring its token head back
    with torch.no_grad():
        best = model.forward_tokens(images).token_logits.amax(1)
        torch.testing.assert_close(model(images), model.backbone(images) + 0.5 * best)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("deit_tiny_patch16_224", (6, 6)), ("cait_xxs24_224", (6, 6)), ("volo_d1_224", (6, 6)), ("resnet18", (3, 3))],
)
def test_image_size_changes_and_positions_follow(name: str, grid: tuple[int, int]) -> None:
    model = make(name, 64, token_score_weight=0.5)
    head = model.token_head.weight.detach().clone()
    model.set_image_px(96)
    assert (model.image_px, model.grid, model.training) == (96, grid, True)
    assert torch.equal(model.token_head.weight, head)
    assert model.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 7)
    if name == "volo_d1_224":  # positions of 4 x 4 cells read at 6 x 6
        small = make(name, 64)
        state = model.adapt_names(small.backbone.state_dict() | {"aux_head.weight": head})
        assert state["backbone.pos_embed"].shape == model.backbone.pos_embed.shape


@pytest.mark.parametrize(
    ("name", "own_px", "image_px"),
    [
        ("swin_tiny_patch4_window7_224", 224, 448),
        pytest.param("swinv2_tiny_window8_256", 256, 320, marks=pytest.mark.campaign),
    ],
)
def test_another_image_size_is_the_network_made_for_that_size(name: str, own_px: int, image_px: int) -> None:
    """So that its checkpoint loads: timm's own set_input_size would change Swin's windows."""
    model, larger = make(name, own_px).eval(), make(name, image_px).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # norms of zero would hide the windows
    model.set_image_px(image_px)
    larger.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, image_px, image_px)
    with torch.no_grad():
        torch.testing.assert_close(model(images), larger(images))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cait_xxs24_224"])
def test_another_image_size_keeps_what_is_frozen_and_the_precision(name: str) -> None:
    model = make(name, 64).to(torch.bfloat16)
    model.backbone.requires_grad_(False)
    model.set_image_px(96)
    assert {key for key, value in model.named_parameters() if value.requires_grad} == {
        "token_head.weight",
        "token_head.bias",
    }
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cait_xxs24_224"])
def test_another_image_size_keeps_the_pooling(name: str) -> None:
    model = make(name, 64)
    model.reset_classifier(3, "avg")
    model.set_image_px(96)
    assert (model.backbone.global_pool, model.num_classes) == ("avg", 3)
    assert model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_image_size_that_does_not_fit_changes_nothing() -> None:
    with torch.device("meta"):
        model, mixer = make("deit_tiny_patch16_224", 64), make("mixer_s16_224", 64)
    with pytest.raises(
        ConfigError, match=r"image_px is 100; it must be a multiple of its token, 16 px. Nearest: 96 or 112"
    ):
        model.set_image_px(100)
    assert (model.image_px, model.grid) == (64, (4, 4))
    model(torch.zeros(1, 3, 64, 64, device="meta"))
    with pytest.raises(ConfigError, match=r"timm/mixer_s16_224: blocks\..*belongs to images of 64 px"):
        mixer.set_image_px(96)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = make("deit_tiny_patch16_224", 32)
    images = torch.randn(2, 3, 32, 32)

    def gradient() -> Tensor:
        model.zero_grad()
        output = model(images, MixBox((0, 1), (0, 1), (2, 2)))
        output.class_logits.square().mean().backward()
        grad = model.backbone.patch_embed.proj.weight.grad
        assert grad is not None
        return grad.clone()

    plain = gradient()
    model.set_grad_checkpointing()
    assert model.backbone.grad_checkpointing
    torch.testing.assert_close(gradient(), plain)
    with torch.device("meta"):
        vgg = make("vgg11", 64)
    with pytest.raises(ConfigError, match="timm/vgg11 has no gradient checkpointing"):
        vgg.set_grad_checkpointing()


def test_layers_by_depth_for_layer_wise_learning_rates() -> None:
    with torch.device("meta"):
        model = make("deit_tiny_patch16_224", 32)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scales[id(model.token_head.weight)] == scales[id(model.backbone.head.weight)] == 1.0
    blocks = [scales[id(block.mlp.fc1.weight)] for block in model.backbone.blocks]
    assert blocks == pytest.approx([0.5 ** (12 - index) for index in range(12)])
    assert scales[id(model.backbone.patch_embed.proj.weight)] == pytest.approx(0.5**13)


def test_image_size_stochastic_depth_and_normalisation_reach_timm() -> None:
    with torch.device("meta"):
        model = make("mixer_s16_224", 96, 3, stochastic_depth=0.2)
    assert model.grid == (6, 6)
    assert model.mean == (0.5, 0.5, 0.5)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates
    assert max(rates) == pytest.approx(0.2)


def test_copy_during_training_is_independent() -> None:
    """Averaged copies of the weights (EMA) are made by deepcopy."""
    model = make("vit_tiny_patch16_224", 32, 3)
    images = torch.randn(2, 3, 32, 32)
    box = MixBox((0, 1), (0, 2), (2, 2))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(images, box).class_logits, model(images, box).class_logits)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or original(*a, **k))
    with torch.device("meta"):
        make("resnet18.a1_in1k", 64)
    assert asked == [False]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("coat_tiny", {}, "timm/coat_tiny gives list as features; a token model needs one tensor"),
        ("pit_ti_224", {}, r"timm/pit_ti_224 gives features of shape \(1, 1, 256\); expected .* or a feature map"),
        ("qwen3_vit_88m_enc", {}, "Qwen3VitEncoder does not support classification"),
        ("deit_tiny_patch16_224", {"image_px": 225}, "multiple of its token, 16 px. Nearest: 224 or 240"),
        ("swin_tiny_patch4_window7_224", {"image_px": 230}, "multiple of its token, 32 px. Nearest: 224 or 256"),
        ("maxvit_tiny_tf_224", {"image_px": 225}, r"no token model at 225 px \(its own size is 224 px\): height"),
        ("xcit_nano_12_p16_224", {"image_px": 225}, r"timm refuses xcit_nano_12_p16_224 .*own size is 224 px"),
        ("resnet18", {"image_px": 0}, r"timm/resnet18 is no token model at 0 px"),
        ("resnet18", {"num_classes": 0}, "num_classes is 0; a classifier needs at least 1"),
        ("vgg11", {"stochastic_depth": 0.1}, "timm/vgg11 has no stochastic depth in timm. Set stochastic_depth to 0."),
        ("resnet18", {"in_chans": 1}, "model timm/resnet18: unknown setting 'in_chans'"),
        ("lvvit_s", {}, "lvvit_s is this package's own model. Write 'lvvit_s'."),
        ("resnet18.best", {}, "unknown weights tag 'best' of timm/resnet18. Legal: .*a1_in1k"),
        (
            "resnett18",
            {},
            r"unknown model 'timm/resnett18': timm [\d.]+ has none such. Did you mean 'timm/resnet18' or",
        ),
    ],
)
def test_refusals_are_one_line(name: str, settings: dict[str, float], words: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=words) as caught:
        create_model(f"timm/{name}", **settings)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
