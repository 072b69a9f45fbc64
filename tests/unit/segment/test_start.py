"""What a segmenter's training begins with: a run's backbone, published weights, drawn ones; heads that depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2

from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.core.files import sha256_of, write_json
from tokenlabel.models import TokenModel, create_model, describe_model, save_weights, write_model_config
from tokenlabel.models.segmentation import SegmentationModel
from tokenlabel.segment.start import build_segmenter

Spec = dict[str, Any]


def backbone(spec: Spec) -> TokenModel:
    """A classifier of seven classes in weights of its own."""
    torch.manual_seed(99)
    return create_model("lvvit_t", 7, 32, **spec["model"]["settings"])


@pytest.fixture
def run_folder(spec: Spec, tmp_path: Path) -> Path:
    """A seed folder of a classification run with such weights."""
    model, folder = backbone(spec), tmp_path / "seed0"
    folder.mkdir()
    classes = tuple(f"class {index}" for index in range(7))
    write_model_config(folder, describe_model(model, "lvvit_t", spec["model"]["settings"], classes, crop=0.9))
    save_weights(model, folder / "model.safetensors", {})
    write_json(folder / "done.json", {"digest": "1a2b3c4d", "seed": 0})
    return folder


def parts(model: SegmentationModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State of the backbone, and of all else."""
    state = model.state_dict()
    own = {name: value for name, value in state.items() if name.startswith("backbone.")}
    return own, {name: value for name, value in state.items() if name not in own}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_starts_from_a_runs_backbone(spec: Spec, run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec["start"] = "1a2b3c4d"
    found = parts(build_segmenter(spec, run_folder, 0))[0]
    expected = backbone(spec).state_dict()
    assert found
    assert all(torch.equal(value, expected[name.removeprefix("backbone.")]) for name, value in found.items())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # the classifier is nobody's loss


def test_a_run_that_the_spec_does_not_name_is_refused(spec: Spec, run_folder: Path) -> None:
    """Its backbone would be left unused without a word."""
    with pytest.raises(CheckpointError, match=r"--start .*seed0: the spec starts from no run"):
        build_segmenter(spec, run_folder, 0)


def test_heads_depend_on_the_seed_alone(spec: Spec, run_folder: Path) -> None:
    drawn, again, other = (build_segmenter(spec, None, seed) for seed in (0, 0, 1))
    spec["start"] = "1a2b3c4d"
    trained = build_segmenter(spec, run_folder, 0)
    assert equal(drawn.state_dict(), again.state_dict())
    assert equal(parts(drawn)[1], parts(trained)[1])
    assert not equal(parts(drawn)[0], parts(trained)[0])
    assert not equal(parts(drawn)[1], parts(other)[1])
    assert not equal(parts(drawn)[0], parts(other)[0])
    assert drawn.training


def test_it_starts_from_published_weights_of_the_stated_digest(spec: Spec, run_folder: Path) -> None:
    digest = sha256_of(run_folder / "model.safetensors")
    spec["model"] |= {"weights": "file:model.safetensors", "weights_sha256": digest, "weights_naming": None}
    published = build_segmenter(spec, None, 0, run_folder)
    expected = backbone(spec).state_dict()
    for name, value in parts(published)[0].items():
        torch.testing.assert_close(value, expected[name.removeprefix("backbone.")])
    spec["model"]["weights_sha256"] = "0" * 64
    with pytest.raises(CheckpointError, match=digest[:8]):
        build_segmenter(spec, None, 0, run_folder)


def test_positions_are_interpolated_to_the_crops_grid(spec: Spec, run_folder: Path) -> None:
    spec["start"], spec["recipe"]["crop_px"] = "1a2b3c4d", 48
    model = build_segmenter(spec, run_folder, 0)
    assert model.image_px == 48
    assert model.backbone.pos_embed.shape[1] == 1 + 3 * 3
    spec["recipe"]["crop_px"] = 40  # of 16 px tokens
    with pytest.raises(ConfigError, match="40"):
        build_segmenter(spec, run_folder, 0)


def test_a_start_that_is_missing_or_another_is_one_line(spec: Spec, run_folder: Path) -> None:
    spec["start"] = "ffffffff"
    with pytest.raises(CheckpointError, match="starts from a backbone's run; give --start"):
        build_segmenter(spec, None, 0)
    with pytest.raises(CheckpointError, match="of run 1a2b3c4d, the spec starts from run ffffffff"):
        build_segmenter(spec, run_folder, 0)


def test_positions_norms_and_biases_do_not_decay(spec: Spec) -> None:
    model = build_segmenter(spec, None, 0)
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.01).param_groups
    free = {id(weight) for group in groups if not group["weight_decay"] for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in free}
    assert {"backbone.pos_embed", "backbone.cls_token"} & dict(model.named_parameters()).keys() <= names
    assert names >= {name for name, weight in model.named_parameters() if weight.ndim == 1}
    assert "head.classifier.weight" not in names
