from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenlabel.core.errors import CheckpointError
from tokenlabel.models import TokenModel, create_model, load_weights, read_metadata, save_weights

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
    report = load_weights(model, path)
    assert same(model, source)
    assert (report.loaded, report.reset, report.interpolated, report.wrapper) == (len(source), (), (), wrapper)


def test_safetensors_round_trip_with_metadata(tmp_path: Path, tiny: Make) -> None:
    source = randomised(tiny())
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(source, path, {"model": "lvvit_s", "note": "é"})
    assert read_metadata(path) == {"model": "lvvit_s", "note": "é"}
    model = tiny()
    load_weights(model, str(path))
    assert same(model, source.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_state_dicts_with_shared_or_strided_tensors_are_written(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    save_weights({"a": shared, "b": shared, "c": shared.t()}, tmp_path / "x.safetensors", {})
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["b"], shared)
    assert torch.equal(loaded["c"], shared.t())


def test_another_grid_interpolates_positions_only(tiny: Make) -> None:
    source = randomised(tiny(image_px=64))
    model = tiny(image_px=96)
    report = load_weights(model, source.state_dict())
    assert report.interpolated == ("pos_embed",)
    assert model.state_dict()["pos_embed"].shape == (1, 37, 24)
    assert torch.equal(model.state_dict()["pos_embed"][:, 0], source.state_dict()["pos_embed"][:, 0])
    assert torch.equal(model.state_dict()["head.weight"], source.state_dict()["head.weight"])


@pytest.mark.parametrize(("name", "kept"), [("timm/vit_tiny_patch16_224", 1), ("t2t_vit_14", 1)])
def test_other_models_interpolate_too(name: str, kept: int) -> None:
    settings = {"depth": 1, "width": 24, "heads": 2} if name == "t2t_vit_14" else {}
    source, model = create_model(name, 3, 32, **settings), create_model(name, 3, 64, **settings)
    assert load_weights(model, source.state_dict()).interpolated == (model.position_name,)
    ours, theirs = (m.state_dict()[model.position_name] for m in (model, source))
    assert torch.equal(ours[:, :kept], theirs[:, :kept])


def test_other_classes_need_reset_heads(tiny: Make) -> None:
    source = randomised(tiny(num_classes=5)).state_dict()
    model = tiny(num_classes=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'head': 5, 'aux_head': 5.*model has 8.*reset_heads"):
        load_weights(model, source)
    assert same(model, before)  # nothing half loaded
    report = load_weights(model, source, reset_heads=True)
    assert report.reset == ("head", "aux_head")
    assert report.loaded == len(source) - 4
    state = model.state_dict()
    assert torch.equal(state["norm.weight"], source["norm.weight"])
    assert not torch.equal(state["head.weight"], before["head.weight"])
    assert 0.005 < state["head.weight"].std() < 0.04
    assert not state["head.bias"].any()


def test_missing_token_head_is_reset_on_request(tiny: Make) -> None:
    """The T2T authors' weights and every plain classifier have none."""
    source = {name: value for name, value in randomised(tiny()).state_dict().items() if "aux_head" not in name}
    with pytest.raises(CheckpointError, match=r"missing: aux_head\.weight, aux_head\.bias"):
        load_weights(tiny(), source)
    model = tiny()
    assert load_weights(model, source, reset_heads=True).reset == ("aux_head",)
    assert torch.equal(model.state_dict()["head.weight"], source["head.weight"])


def test_timm_state_dicts_load_into_the_backbone() -> None:
    model = create_model("timm/resnet18", 4, 32)
    source = create_model("timm/resnet18", 4, 32)
    bare = {name.removeprefix("backbone."): v for name, v in source.state_dict().items() if "token_head" not in name}
    assert load_weights(model, bare, reset_heads=True).reset == ("token_head",)
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], bare["conv1.weight"])


def test_reset_heads_does_not_hide_another_model(tiny: Make) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another model") as caught:
        load_weights(model, tiny(width=48, depth=3).state_dict(), reset_heads=True)
    message = str(caught.value)
    assert "unexpected: blocks.2.norm1.weight" in message
    assert "wrong shape: cls_token (1, 1, 48) instead of (1, 1, 24)" in message
    assert message.count("instead of") == 10
    assert "more" in message
    assert same(model, before)


def test_counters_missing_in_old_files_are_no_mismatch(tiny: Make) -> None:
    source = {n: v for n, v in randomised(tiny()).state_dict().items() if "num_batches_tracked" not in n}
    model = tiny()
    load_weights(model, source)
    assert torch.equal(model.state_dict()["norm.weight"], source["norm.weight"])


class Malicious:
    """Runs code when unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pth", b""),
        ("a.pth", b"no checkpoint at all"),
        ("a.safetensors", b"12345678"),
        ("a.pth", pickle.dumps(Malicious(), protocol=2)),
    ],
    ids=["empty", "text", "safetensors", "malicious"],
)
def test_damaged_files(name: str, content: bytes, tmp_path: Path, tiny: Make) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_weights(tiny(), tmp_path / name)


def test_truncated_file(tmp_path: Path, tiny: Make) -> None:
    path = tmp_path / "a.pth"
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(tiny(), path)


def test_malicious_file_executes_nothing_even_inside_a_torch_archive(tmp_path: Path, tiny: Make) -> None:
    torch.save({"state_dict": {"x": Malicious()}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="more than weights"):
        load_weights(tiny(), tmp_path / "a.pth")


def test_missing_file_and_content_that_is_no_state_dict(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tiny(), tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_metadata(tmp_path / "none.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        load_weights(tiny(), tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        load_weights(tiny(), {"model": {"head.weight": 3}})
