from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenlabel.core.errors import CheckpointError
from tokenlabel.models import TokenModel, create_model, load_checkpoint, save_weights
from tokenlabel.models.weights import read_metadata

Make = Callable[..., TokenModel]


def randomised(model: TokenModel) -> TokenModel:
    """A model whose every entry differs from a fresh one's."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape) + 3 if value.is_floating_point() else torch.tensor(9))
    return model


def same(model: TokenModel, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_training_programs(suffix: str, wrapper: str, prefix: str, tmp_path: Path, tiny: Make) -> None:
    source = randomised(tiny()).state_dict()
    content: object = {prefix + name: value for name, value in source.items()}
    if wrapper:
        content = {"epoch": 3, "args": argparse.Namespace(lr=1.0), wrapper: content}
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    model = tiny()
    report = load_checkpoint(model, path)
    assert same(model, source)
    assert (report.loaded, report.reset, report.interpolated, report.wrapper) == (len(source), (), (), wrapper)


def test_another_grid_interpolates_positions_only(tiny: Make) -> None:
    source = randomised(tiny(image_px=64))
    model = tiny(image_px=96)
    report = load_checkpoint(model, source.state_dict())
    assert report.interpolated == ("pos_embed",)
    assert model.state_dict()["pos_embed"].shape == (1, 37, 24)
    assert torch.equal(model.state_dict()["pos_embed"][:, 0], source.state_dict()["pos_embed"][:, 0])
    assert torch.equal(model.state_dict()["head.weight"], source.state_dict()["head.weight"])


@pytest.mark.parametrize(("name", "kept"), [("timm/vit_tiny_patch16_224", 1), ("t2t_vit_14", 1)])
def test_other_models_interpolate_too(name: str, kept: int) -> None:
    settings = {"depth": 1, "width": 24, "heads": 2} if name == "t2t_vit_14" else {}
    source, model = create_model(name, 3, 32, **settings), create_model(name, 3, 64, **settings)
    assert load_checkpoint(model, source.state_dict()).interpolated == (model.position_name,)
    ours, theirs = (m.state_dict()[model.position_name] for m in (model, source))
    assert torch.equal(ours[:, :kept], theirs[:, :kept])


def test_other_classes_initialise_the_heads_anew_and_say_so(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    source = randomised(tiny(num_classes=5)).state_dict()
    model = tiny(num_classes=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'head': 5, 'aux_head': 5.*model has 8.*reset_heads"):
        load_checkpoint(model, source, reset_heads=False)
    assert same(model, before)  # nothing half loaded
    assert not caplog.records
    report = load_checkpoint(model, source)
    assert (report.reset, report.classes_found) == (("head", "aux_head"), 5)
    assert caplog.messages[-1] == "state dict: heads of 5 classes, the model has 8: head and aux_head initialised anew"
    assert report.loaded == len(source) - 4
    state = model.state_dict()
    assert torch.equal(state["norm.weight"], source["norm.weight"])
    assert not torch.equal(state["head.weight"], before["head.weight"])
    assert 0.005 < state["head.weight"].std() < 0.04
    assert not state["head.bias"].any()


def test_without_heads_only_the_rest_is_loaded_and_nothing_is_said_of_them(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    source = randomised(tiny(num_classes=5)).state_dict()
    del source["aux_head.weight"], source["aux_head.bias"]
    model = tiny(num_classes=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_checkpoint(model, source, without_heads=True)
    assert (report.reset, report.loaded) == ((), len(source) - 2)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith(("head.", "aux_head.")) else source[name])
    del source["norm.weight"]
    with pytest.raises(CheckpointError, match=r"missing: norm\.weight"):
        load_checkpoint(model, source, without_heads=True)


def test_a_missing_token_head_is_initialised_anew_and_said(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The T2T authors' weights and every plain classifier have none."""
    source = {name: value for name, value in randomised(tiny()).state_dict().items() if "aux_head" not in name}
    with pytest.raises(CheckpointError, match=r"missing: aux_head\.weight, aux_head\.bias"):
        load_checkpoint(tiny(), source, reset_heads=False)
    model = tiny()
    assert load_checkpoint(model, source).reset == ("aux_head",)
    assert caplog.messages[-1] == "state dict: lacks aux_head, initialised anew for 5 classes"
    assert torch.equal(model.state_dict()["head.weight"], source["head.weight"])


def test_timm_state_dicts_load_into_the_backbone() -> None:
    model = create_model("timm/resnet18", 4, 32)
    source = create_model("timm/resnet18", 4, 32)
    bare = {name.removeprefix("backbone."): v for name, v in source.state_dict().items() if "token_head" not in name}
    assert load_checkpoint(model, bare).reset == ("token_head",)
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], bare["conv1.weight"])


def test_reset_heads_does_not_hide_another_model(tiny: Make) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another model") as caught:
        load_checkpoint(model, tiny(width=48, depth=3).state_dict())
    message = str(caught.value)
    assert "unexpected: blocks.2.norm1.weight" in message
    assert "wrong shape: cls_token (1, 1, 48) instead of (1, 1, 24)" in message
    assert message.count("instead of") == 10
    assert "more" in message
    assert same(model, before)


def test_counters_missing_in_old_files_are_no_mismatch(tiny: Make) -> None:
    source = {n: v for n, v in randomised(tiny()).state_dict().items() if "num_batches_tracked" not in n}
    model = tiny()
    load_checkpoint(model, source)
    assert torch.equal(model.state_dict()["norm.weight"], source["norm.weight"])


def write_both(folder: Path, plain: dict[str, Tensor], averaged: dict[str, Tensor], form: str) -> Path:
    """Plain and averaged weights as a run leaves them, or in one file as timm and the published code write them."""
    if form == "folder":
        save_weights(plain, folder / "model.safetensors", {})
        save_weights(averaged, folder / "model_ema.safetensors", {})
        return folder
    keys = ("state_dict", "state_dict_ema") if form == "timm" else ("model", "model_ema")
    torch.save({"epoch": 3, keys[0]: plain, keys[1]: averaged}, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar"


@pytest.mark.parametrize("form", ["folder", "timm", "deit"])
def test_averaged_or_plain_weights_are_chosen_and_named(
    form: str, tmp_path: Path, tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    plain, averaged = randomised(tiny()).state_dict(), randomised(tiny()).state_dict()
    place = write_both(tmp_path, plain, averaged, form)
    model = tiny()
    with caplog.at_level("INFO", logger="tokenlabel"):
        for use_ema, expected, words in (
            (True, averaged, "averaged weights (EMA)"),
            (False, plain, "of weights loaded"),
        ):
            caplog.clear()
            report = load_checkpoint(model, place, use_ema=use_ema)
            assert same(model, expected)
            assert report.averaged == use_ema
            assert words in caplog.text
            assert report.where in caplog.text


def test_plain_weights_are_never_replaced_by_averaged_ones(tmp_path: Path, tiny: Make) -> None:
    torch.save({"state_dict_ema": tiny().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds averaged weights only"):
        load_checkpoint(tiny(), tmp_path / "a.pth", use_ema=False)
    save_weights(tiny(), tmp_path / "model_ema.safetensors", {})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_checkpoint(tiny(), tmp_path, use_ema=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_names(value: float, tiny: Make) -> None:
    model = tiny()
    before = {name: entry.clone() for name, entry in model.state_dict().items()}
    source = randomised(tiny()).state_dict()
    names = [name for name, entry in source.items() if entry.is_floating_point()]
    for name in names[:12]:
        source[name].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match="NaN or infinite values in ") as caught:
        load_checkpoint(model, source)
    message = str(caught.value)
    assert f"{', '.join(names[:10])} and 2 more" in message
    assert "\n" not in message
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_positions_are_interpolated(dtype: torch.dtype, tiny: Make) -> None:
    source = {name: v.to(dtype) if v.is_floating_point() else v for name, v in randomised(tiny()).state_dict().items()}
    model, reference = tiny(image_px=96), tiny(image_px=96)
    load_checkpoint(model, source)
    load_checkpoint(reference, {name: v.float() if v.is_floating_point() else v for name, v in source.items()})
    assert model.state_dict()["pos_embed"].dtype == torch.float32
    assert same(model, reference.state_dict())


def test_double_precision_is_narrowed_to_the_models(tiny: Make) -> None:
    source = {n: v.double() if v.is_floating_point() else v for n, v in randomised(tiny()).state_dict().items()}
    model = tiny()
    load_checkpoint(model, source)
    assert torch.equal(model.state_dict()["norm.weight"].double(), source["norm.weight"])


def test_equal_weights_make_equal_files(tiny: Make, tmp_path: Path) -> None:
    """A run done twice has the same digest in its marker; safetensors alone orders metadata anew each time."""
    model = randomised(tiny())
    metadata = {"spec": '{"name": "Blüte\\n\\t\\"/\\u0001"}'} | {f"key {number}": str(number) for number in range(12)}
    for name in ("one", "two"):
        save_weights(model, tmp_path / f"{name}.safetensors", metadata)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert read_metadata(tmp_path / "one.safetensors") == metadata
    assert load_checkpoint(tiny(), tmp_path / "one.safetensors").loaded == len(model.state_dict())
    save_weights(model, tmp_path / "bare.safetensors", {})
    assert read_metadata(tmp_path / "bare.safetensors") == {}
