"""The training path from files and label shards to targets, for each view of the maps, by drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tests.unit.labels.conftest import write_shard
from tests.unit.labels.drawing import region_maps, regions, shown_by_tokens
from tokenlabel.core.config import GEOMETRIC_OPERATIONS, load_config
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabelStore, sparse_targets
from tokenlabel.labels.shards import LabelRows
from tokenlabel.train.augment import Augmentation
from tokenlabel.train.batches import Batches, TrainingSet

GRID, CELLS, TOKENS = (3, 4), (3, 2), (14, 14)
SIZES = {"n01440764/wide.png": (400, 240), "n01440764/tall.png": (240, 420), "n01443537/square.png": (300, 300)}


@pytest.mark.parametrize("view", ["squash", "centre_crop"])
def test_targets_say_what_the_pixels_show(view: str, raw_config: dict[str, Any], tmp_path: Path) -> None:
    for path, size in SIZES.items():
        covered = size if view == "squash" else (min(size), min(size))
        photograph = Image.new("RGB", size)  # a centre crop's margin in the colour of fills
        photograph.paste(regions(*covered, GRID), ((size[0] - covered[0]) // 2, (size[1] - covered[1]) // 2))
        for split in ("train", "val"):
            target = tmp_path / split / path
            target.parent.mkdir(parents=True, exist_ok=True)
            photograph.save(target)
    machine = machine_settings(tmp_path)
    manifest = write_manifests(tmp_path / "manifest", machine)["train"]
    scores, classes = region_maps(GRID, CELLS)
    rows = LabelRows(
        sample_id=np.array([sample_id(path) for path in SIZES], dtype=np.uint64),
        scores=scores.repeat(3, 0).astype(np.float16),
        classes=classes.repeat(3, 0).astype(np.uint16),
        tail=None,
        image_size=np.array([size[::-1] for size in SIZES.values()], dtype=np.uint32),
        status=np.zeros(3, np.uint8),
        reason=[""] * 3,
    )
    (tmp_path / "labels").mkdir()
    write_shard(
        tmp_path / "labels", rows, view=view, num_classes=1000, rows=classes.shape[1], cols=classes.shape[2], k=1
    )
    recipe = load_config(raw_config).recipes["released_code"].model_dump(mode="json")
    recipe |= {
        "crop_scale": [0.5, 1.0],
        "randaugment_operations": list(GEOMETRIC_OPERATIONS),
        "erasing_probability": 0.0,
    }
    augmentation = Augmentation(recipe, 224, (0.0,) * 3, (1.0,) * 3)
    dataset = TrainingSet(manifest, machine, augmentation, LabelStore(tmp_path / "labels", "train"), seed=0)
    batches = Batches(dataset, batch_size=3, micro_batch=2, workers=0)
    compared = masked = 0
    for epoch in range(4):
        for micro in (micro for step in batches(epoch, 0) for micro in step):
            targets = sparse_targets(micro.scores, micro.classes, None, TOKENS, 1000, affine=micro.affine)
            best = np.where(targets.inside, targets.dense().argmax(-1), -1)
            for image, found in zip(micro.images, best, strict=True):
                pixels = np.round(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
                expected, sure = shown_by_tokens(pixels, GRID, TOKENS, doubt_px=4)
                seen = sure & (expected >= 0)  # a fill may hide what an operation pushed over the border
                assert (found == expected)[seen].all()
                compared, masked = compared + seen.sum(), masked + (found == -1).sum()
    assert compared > 150
    assert masked > 0
