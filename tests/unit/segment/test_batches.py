"""The stream of scenes: the same whoever reads it and wherever it is entered; what cannot be decoded is left out and counted."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.scenes import scene_machine, write_scene_manifests, write_scenes
from tokenlabel.core.errors import ConfigError, DataError
from tokenlabel.data.scenes import IGNORED, load_scene_manifest
from tokenlabel.engine.processes import Processes
from tokenlabel.segment.augment import SceneAugmentation
from tokenlabel.segment.batches import SceneBatch, SceneBatches, SceneTrainingSet

from .test_augment import MEAN, STD, recipe

CPU = torch.device("cpu")
SCENES = 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=SCENES, val=1)
    write_scene_manifests(root / "manifest", root)
    return root


def stream(root: Path, *, workers: int = 0, processes: Processes | None = None, seed: int = 0, batch_size: int = 6,
           micro_batch: int = 2, interval: int = 3, **machine: Any) -> SceneBatches:  # fmt: skip
    dataset = SceneTrainingSet(
        load_scene_manifest(root / "manifest", "train"), scene_machine(root, **machine),
        SceneAugmentation(recipe(crop_px=32, photometric=True), MEAN, STD), seed,
    )  # fmt: skip
    sharing = {} if processes is None else {"processes": processes}
    return SceneBatches(
        dataset,
        batch_size=batch_size,
        micro_batch=micro_batch,
        workers=workers,
        interval_iterations=interval,
        **sharing,
    )


def read(batches: SceneBatches, intervals: int = 2, first_step: int = 0) -> list[list[SceneBatch]]:
    """Steps of the first intervals, from a step of the first one on, on the device."""
    steps = [step for interval in range(intervals) for step in batches(interval, 0 if interval else first_step)]
    return [[micro.to(CPU) for micro in step] for step in steps]


def flat(steps: Iterable[list[SceneBatch]]) -> list[SceneBatch]:
    return [micro for step in steps for micro in step]


def assert_equal(first: list[list[SceneBatch]], second: list[list[SceneBatch]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(flat(first), flat(second), strict=True):
        assert (one.sample_ids == other.sample_ids).all()
        assert one.index == other.index
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


def test_batches_are_what_a_model_takes(drawn: Path) -> None:
    batches = stream(drawn)
    assert (batches.batch_size, batches.micro_batch, batches.steps_per_epoch) == (6, 2, 3)
    steps = read(batches, 1)
    assert [[micro.index for micro in step] for step in steps] == [[0, 1, 2]] * 3
    micro = steps[0][0]
    assert micro.images_count == 2
    assert micro.images.shape == (2, 3, 32, 32)
    assert micro.images.dtype == torch.float32
    assert micro.images.abs().max() < 3
    assert micro.masks.dtype == torch.int64
    assert set(micro.masks.unique().tolist()) <= {IGNORED, 0, 1, 2}
    again = micro.to(CPU)
    assert torch.equal(again.images, micro.images)


def test_each_pass_has_every_scene_once_and_looks_otherwise(drawn: Path) -> None:
    """Steps of 6 over 8 scenes: passes end inside steps."""
    micros = flat(read(stream(drawn), 4))
    ids = np.concatenate([micro.sample_ids for micro in micros])
    assert len(ids) == 4 * 3 * 6
    passes = ids.reshape(-1, SCENES)
    assert all(len(set(one.tolist())) == SCENES for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) == len(passes)
    images = torch.cat([micro.images for micro in micros])
    first, second = (images[place] for place in np.flatnonzero(ids == ids[0])[:2])
    assert not torch.equal(first, second)
    other = np.concatenate([micro.sample_ids for micro in flat(read(stream(drawn, seed=1), 4))])
    assert (ids != other).any()


def test_workers_a_resume_and_the_device_change_nothing(drawn: Path) -> None:
    whole = read(stream(drawn))
    assert_equal(whole, read(stream(drawn, workers=2)))
    assert_equal(whole[2:], read(stream(drawn), first_step=2))
    on_device = stream(drawn, augment_on_gpu=True)
    loaded = next(iter(on_device(0, 0)))[0]
    assert len(loaded.colours) == 2
    assert_equal(whole, read(on_device))
    undone, done = loaded.images, next(iter(stream(drawn)(0, 0)))[0].images
    assert not torch.equal(undone, done)


def test_intervals_of_another_length_read_the_same_stream(drawn: Path) -> None:
    assert_equal(read(stream(drawn, interval=3), 2), read(stream(drawn, interval=2), 3))


def test_processes_share_what_one_reads(drawn: Path) -> None:
    whole = read(stream(drawn, micro_batch=1, batch_size=4))
    shares = [read(stream(drawn, micro_batch=1, batch_size=4, processes=Processes(rank, 2))) for rank in range(2)]
    for step, *parts in zip(whole, *shares, strict=True):
        together = sorted(flat(parts), key=lambda micro: micro.index)
        assert_equal([step], [together])
        assert len(parts[0]) == len(parts[1])
    with pytest.raises(
        ConfigError,
        match=r"batch_size 6 in micro-batches of 2 \(machine\.segment_micro_batch\) makes 3 a step, which 2 processes",
    ):
        stream(drawn, processes=Processes(0, 2))


def test_a_batch_larger_than_the_split_takes_scenes_again(drawn: Path) -> None:
    step = read(stream(drawn, batch_size=20, micro_batch=20, interval=1), 1)[0][0]
    counts = Counter(step.sample_ids.tolist())
    assert step.images_count == 20
    assert sorted(counts.values()) == [2] * 4 + [3] * 4


def test_scenes_that_became_unreadable_are_skipped(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / "scenes"))
    for index in (2, 5):
        path = root / "annotations" / "training" / f"scene_{index:03d}.png"
        path.write_bytes(bytes(path.stat().st_size))
    with caplog.at_level(logging.WARNING):
        micros = flat(read(stream(root, batch_size=8, micro_batch=1, interval=2), 1))
    assert sum(micro.skipped for micro in micros) == 4
    assert sum(micro.images_count for micro in micros) == 12
    assert [record.message.split(":")[0] for record in caplog.records] in (
        ["scene_002.png", "scene_005.png"], ["scene_005.png", "scene_002.png"],
    )  # fmt: skip
    empty = next(micro for micro in micros if micro.skipped)
    assert empty.images.shape == (0, 3, 32, 32)


def test_a_split_without_scenes_is_refused(drawn: Path) -> None:
    manifest = load_scene_manifest(drawn / "manifest", "train")
    nothing = dataclasses.replace(manifest, sample_id=manifest.sample_id[:0])
    dataset = SceneTrainingSet(nothing, scene_machine(drawn), SceneAugmentation(recipe(), MEAN, STD), 0)
    with pytest.raises(DataError, match="nothing can be trained"):
        SceneBatches(dataset, batch_size=2, micro_batch=2, workers=0, interval_iterations=1)
