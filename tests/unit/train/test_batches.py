"""The training path from files and label shards to targets, for each view of the maps, by drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tests.unit.labels.conftest import write_shard
from tests.unit.labels.drawing import region_maps, regions, shown_by_tokens
from tokenlabel.core.config import GEOMETRIC_OPERATIONS, load_config
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabelStore, sparse_targets
from tokenlabel.labels.shards import LabelRows
from tokenlabel.train.augment import Augmentation
from tokenlabel.train.batches import Batches, MicroBatch, TrainingSet

from .conftest import Workplace

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
        for micro in (micro.to(torch.device("cpu")) for step in batches(epoch, 0) for micro in step):
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


def loaded(
    workplace: Workplace, recipe: dict[str, Any], *, workers: int = 0, first_step: int = 0, **machine: Any
) -> list[MicroBatch]:
    """The second epoch's micro-batches from a step on, before they are on a device."""
    store = LabelStore(workplace.labels, "train")
    augmentation = Augmentation(recipe, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    dataset = TrainingSet(workplace.manifests["train"], workplace.machine | machine, augmentation, store, seed=3)
    batches = Batches(dataset, batch_size=12, micro_batch=5, workers=workers)
    return [micro for step in batches(1, first_step) for micro in step]


def assert_equal(first: list[MicroBatch], second: list[MicroBatch], grey_levels: float = 0.0) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        one, other = one.to(torch.device("cpu")), other.to(torch.device("cpu"))
        assert (one.sample_ids == other.sample_ids).all()
        assert one.skipped == other.skipped
        assert one.images.dtype == torch.float32
        assert float((one.images - other.images).abs().max()) <= grey_levels / 255 / 0.224
        for name in ("class_index", "affine", "scores", "classes", "tail"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.fixture
def released_recipe(raw_config: dict[str, Any]) -> dict[str, Any]:
    return load_config(raw_config).recipes["released_code"].model_dump(mode="json")


@pytest.mark.parametrize("read_order", ["shuffled", "sequential"])
def test_workers_and_a_resume_change_nothing(
    read_order: str, released_recipe: dict[str, Any], workplace: Workplace
) -> None:
    recipe = released_recipe | {"read_order": read_order}
    alone = loaded(workplace, recipe)
    assert_equal(alone, loaded(workplace, recipe, workers=2))
    assert_equal(alone[6:], loaded(workplace, recipe, first_step=2))
    ids = np.concatenate([micro.sample_ids for micro in alone])
    assert len(set(ids.tolist())) == len(ids) == 35 - 35 % 12 - sum(micro.skipped for micro in alone)


def test_augmentation_on_the_device_gives_the_same_numbers(
    released_recipe: dict[str, Any], workplace: Workplace
) -> None:
    """On the processor bit for bit; a GPU resizes in float32, which rounds differently."""
    in_loader = loaded(workplace, released_recipe, workers=1)
    on_device = loaded(workplace, released_recipe, workers=1, augment_on_gpu=True)
    assert in_loader[0].images.dtype == torch.uint8
    assert not on_device[0].images.numel()
    assert_equal(in_loader, on_device)


def test_a_decode_cache_changes_no_number(
    released_recipe: dict[str, Any], workplace: Workplace, tmp_path: Path
) -> None:
    recipe = released_recipe | {"cache_short_side_px": 80}
    cached = loaded(workplace, recipe, workers=1, decode_cache=str(tmp_path))
    assert list(tmp_path.glob("train-80px-*.u8"))
    assert_equal(loaded(workplace, recipe), cached)
    assert any(
        (one.to(torch.device("cpu")).images != other.to(torch.device("cpu")).images).any()
        for one, other in zip(cached, loaded(workplace, released_recipe), strict=True)
    )


def test_erased_boxes_hold_the_drawn_noise(released_recipe: dict[str, Any], workplace: Workplace) -> None:
    erased = loaded(workplace, released_recipe | {"erasing_probability": 1.0})
    plain = loaded(workplace, released_recipe | {"erasing_probability": 0.0})
    for one, other in zip(erased, plain, strict=True):
        assert one.work is not None
        changed, same = one.to(torch.device("cpu")), other.to(torch.device("cpu"))
        for image, before, draw in zip(changed.images, same.images, one.work.draws, strict=True):
            noise = Augmentation(released_recipe, 64, (0.5,) * 3, (0.5,) * 3).noise(draw)
            top, left, height, width = draw.erased
            assert torch.equal(image[:, top : top + height, left : left + width], noise)
            image[:, top : top + height, left : left + width] = before[:, top : top + height, left : left + width]
            assert torch.equal(image, before)
