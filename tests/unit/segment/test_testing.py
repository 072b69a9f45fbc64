"""Testing: the class of every pixel at the mask's size, what is counted, and that a segmenter is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.scenes import scene_machine, write_scene_manifests, write_scenes
from tokenlabel.core.errors import DataError
from tokenlabel.models.segmentation import SegmentationModel
from tokenlabel.segment.measures import Confusion
from tokenlabel.segment.start import build_segmenter
from tokenlabel.segment.testing import (
    Look,
    ResizedScenes,
    SceneMeasures,
    best_classes,
    measure_scenes,
    predict_classes,
)

from .conftest import Workplace

CPU: dict[str, Any] = {"device": torch.device("cpu"), "precision": torch.float32}
LOOK = Look("slide", 32, 21, 40)


@pytest.fixture
def model(spec: dict[str, Any]) -> SegmentationModel:
    return build_segmenter(spec, None, 0)


@pytest.mark.parametrize("classes", [3, 16, 37])
@pytest.mark.parametrize("size", [(20, 30), (41, 53), (8, 9)])
def test_the_best_class_is_that_of_all_classes_at_once(classes: int, size: tuple[int, int]) -> None:
    scores = torch.randn(classes, 20, 30, generator=torch.Generator().manual_seed(classes)).softmax(0)
    resized = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(best_classes(scores, size), resized.argmax(0))


def test_of_equal_scores_the_first_class_counts() -> None:
    assert torch.equal(best_classes(torch.full((40, 4, 4), 0.025), (4, 4)), torch.zeros(4, 4, dtype=torch.int64))


def test_a_photograph_is_resized_to_its_shorter_side() -> None:
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    assert replace(LOOK, short_side_px=40).resized(image).shape == (3, 40, 60)
    assert replace(LOOK, short_side_px=40).resized(image.transpose(1, 2)).shape == (3, 60, 40)
    assert replace(LOOK, short_side_px=None).resized(image) is image
    assert replace(LOOK, short_side_px=60).resized(image) is image


def test_a_trainings_look_is_its_crop(spec: dict[str, Any], testing: dict[str, Any]) -> None:
    assert Look.of_recipe(spec["recipe"]) == LOOK
    assert Look.of_spec(testing) == (LOOK, replace(LOOK, scales=(0.75, 1.0, 1.5), flip=True))


def measure(model: SegmentationModel, workplace: Workplace, *looks: Look, **options: Any) -> SceneMeasures:
    scenes = ResizedScenes(workplace.manifests["val"], workplace.machine, LOOK)
    return measure_scenes(model, scenes, looks, workplace.machine | {"micro_batch": 2}, **CPU, **options)


def test_every_labelled_pixel_of_the_split_is_counted_once(model: SegmentationModel, workplace: Workplace) -> None:
    several = replace(LOOK, scales=(0.75, 1.5), flip=True)
    asked: list[int] = []
    found = measure(model, workplace, LOOK, several, before_scene=lambda: asked.append(1))
    assert (found.images, found.skipped, len(asked)) == (6, 0, 6)
    for confusion in found.confusions:
        assert torch.equal(confusion.class_pixels, torch.from_numpy(workplace.manifests["val"].class_pixels))
    assert not torch.equal(found.confusions[0].pixels, found.confusions[1].pixels)
    assert model.training
    assert model.head.training


def test_it_counts_what_one_scene_after_the_other_gives(model: SegmentationModel, workplace: Workplace) -> None:
    seen: list[tuple[int, torch.Size]] = []
    (found,) = measure(
        model, workplace, LOOK, seen=lambda row, scene, classes: seen.append((row, classes.shape))
    ).confusions
    expected = Confusion(3)
    opened = workplace.manifests["val"].open(workplace.machine)
    model.eval()
    for row in range(6):
        scene = opened.read(row)
        with torch.no_grad():
            classes = predict_classes(model, LOOK.resized(scene.image), (40, 56), LOOK, **CPU, batch=1)
        expected.add(classes, scene.mask)
    assert torch.equal(found.pixels, expected.pixels)
    assert seen == [(row, torch.Size((40, 56))) for row in range(6)]


def test_a_scene_that_cannot_be_decoded_is_left_out_with_a_warning(
    model: SegmentationModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scenes(tmp_path / "data", train=2, val=2)
    machine = scene_machine(tmp_path / "data")
    workplace = Workplace(tmp_path, write_scene_manifests(tmp_path / "manifest", tmp_path / "data"), machine)
    files = sorted((tmp_path / "data" / "images" / "validation").iterdir())
    files[0].write_bytes(b"x" * files[0].stat().st_size)
    found = measure(model, workplace, LOOK)
    assert (found.images, found.skipped) == (1, 1)
    assert "scene_000.png: cannot be decoded" in caplog.text
    files[1].write_bytes(b"x" * files[1].stat().st_size)
    with pytest.raises(DataError, match="no readable scene"):
        measure(model, workplace, LOOK)
