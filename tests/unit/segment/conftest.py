"""Small generated scenes, listed once, and the spec of a segmenter that trains on them in a second."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.scenes import scene_machine, scene_spec, write_scene_manifests, write_scenes
from tokenlabel.data.scenes import SceneManifest


@dataclass(frozen=True)
class Workplace:
    """Twelve scenes to train on and six to measure, of three classes."""

    root: Path
    manifests: dict[str, SceneManifest]
    machine: dict[str, Any]


def make_workplace(root: Path) -> Workplace:
    write_scenes(root / "data", train=12, val=6)
    machine = scene_machine(root / "data", segment_micro_batch=2, validate_every_epochs=0, log_every_steps=2)
    return Workplace(root, write_scene_manifests(root / "manifest", root / "data"), machine)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture
def spec() -> dict[str, Any]:
    """A run's spec: a backbone of two blocks at 32 px, FCN with an auxiliary head, three intervals of four steps."""
    return copy.deepcopy(
        {
            "stage": "segment", "version": 1, "dataset": scene_spec(),
            "model": {
                "architecture": "lvvit_t", "stochastic_depth": 0.1,
                "settings": {"depth": 2, "width": 48, "heads": 2, "stem_channels": 16},
            },
            "image_px": 32, "start": None,
            "head": {
                "kind": "fcn", "channels": 24, "convolutions": 1, "concatenate_input": True, "dropout": 0.1,
                "levels": {"blocks": "even", "scales": [1, 1], "deepest_channels": None},
                "auxiliary": {"level": 0, "channels": 16, "convolutions": 1, "dropout": 0.1},
            },
            "recipe": {
                "iterations": 12, "interval_iterations": 4, "batch_size": 4, "learning_rate": 3e-3, "min_learning_rate": 1e-4,
                "warmup_iterations": 2, "warmup_learning_rate": 1e-6, "weight_decay": 0.01, "clip_norm": None,
                "ema_decay": None, "auxiliary_weight": 0.4, "crop_px": 32, "short_side_px": 40, "scale_range": [0.5, 2.0],
                "max_class_share": 0.75, "flip_probability": 0.5, "photometric": True,
            },
        }
    )  # fmt: skip


@pytest.fixture
def testing() -> dict[str, Any]:
    """The spec of an evaluation of it."""
    return {
        "stage": "evaluate_segmentation", "version": 1, "mode": "slide", "window_px": 32, "stride_px": 21,
        "short_side_px": 40, "scales": [0.75, 1.0, 1.5], "flip": True, "use_ema": True,
    }  # fmt: skip
