"""Training batches of segmentation: an endless stream of scenes, one permutation after the other, cut into steps.

An epoch of the engine is an interval of so many steps, wherever the permutations end. Which scenes make a step, and what happens
to them, depends on the seed alone, so a training resumes at any step and any number of processes reads the same. Scenes that
cannot be decoded are left out and counted. Pixels stay uint8 until they are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..core.errors import UnreadableImageError
from ..core.log import logger
from ..core.seeds import derived_seed
from ..data.pixels import normalise
from ..data.scenes import SceneManifest
from ..engine.batch_plan import BatchPlan
from ..engine.loading import load_steps
from ..engine.processes import ALONE, Processes
from .augment import SceneAugmentation, SceneDraw


@dataclass(frozen=True)
class SceneBatch:
    """What the device gets at once.

    Attributes:
        images: (batch, 3, crop_px, crop_px); uint8 from the loader, float32 and normalised after `to`.
        masks: (batch, crop_px, crop_px), class of each pixel or IGNORED; int16 from the loader, int64 after `to`.
        skipped: scenes that could not be decoded.
        index: its number in the step, from 0, over all processes.
        sample_ids: uint64 (batch,).
        augmentation: of the run.
        colours: what the device still has to do to the colours of each; empty where the loader did it, or it is done.
    """

    images: Tensor
    masks: Tensor
    skipped: int
    augmentation: SceneAugmentation
    index: int = 0
    sample_ids: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    colours: tuple[SceneDraw, ...] = ()

    @property
    def images_count(self) -> int:
        """Scenes in it."""
        return len(self.images)

    def to(self, device: torch.device) -> SceneBatch:
        """The same batch on a device, ready for the model."""
        masks = self.masks.to(device, non_blocking=True).long()
        if self.images.is_floating_point():
            return replace(self, images=self.images.to(device, non_blocking=True), masks=masks)
        images = self.images.to(device, non_blocking=True)
        for image, draw in zip(images, self.colours, strict=bool(self.colours)):
            self.augmentation.recolour(image, draw)
        images = normalise(images, self.augmentation.mean, self.augmentation.std, torch.contiguous_format)
        return replace(self, images=images, masks=masks, colours=())

    def pin_memory(self) -> SceneBatch:
        """The same batch in memory that a GPU copies from by itself; the loader calls it."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


class SceneTrainingSet(Dataset[SceneBatch]):
    """Augmented scenes; indexed by their place in the endless stream, so that workers need no state.

    Args:
        manifest: of the training split.
        machine: segmentation_root, scenes, augment_on_gpu, prefetch_batches.
        augmentation: of the run.
        seed: of the run.

    Attributes:
        prefetch_batches: micro-batches that a loader process makes ahead.

    Raises:
        DataError: segmentation_root is missing.
    """

    def __init__(
        self, manifest: SceneManifest, machine: Mapping[str, Any], augmentation: SceneAugmentation, seed: int
    ) -> None:
        self._manifest, self._augmentation, self._seed = manifest, augmentation, seed
        self._scenes = manifest.open(machine)
        self._on_device: bool = machine["augment_on_gpu"]
        self.prefetch_batches: int = machine["prefetch_batches"]
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._manifest)

    def row_at(self, place: int) -> tuple[int, int]:
        """How often all scenes have been read before a place of the stream, and the row of the scene there."""
        number, rest = divmod(place, len(self))
        if number not in self._orders:
            # a step may lie across the end of one pass; of more than two passes at once only tiny sets have a need
            self._orders = {kept: self._orders[kept] for kept in self._orders if kept == number - 1}
            self._orders[number] = np.random.default_rng(derived_seed("order", self._seed, number)).permutation(
                len(self)
            )
        return number, int(self._orders[number][rest])

    def __getitem__(self, place: int) -> SceneBatch:
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[int]) -> SceneBatch:
        """The micro-batch of some places of the stream; the loader asks for whole ones."""
        crop_px = self._augmentation.crop_px
        images = torch.empty(len(places), 3, crop_px, crop_px, dtype=torch.uint8)
        masks = torch.empty(len(places), crop_px, crop_px, dtype=torch.int16)
        rows: list[int] = []
        draws: list[SceneDraw] = []
        for place in places:
            number, row = self.row_at(place)
            try:
                scene = self._scenes.read(row)
            except UnreadableImageError as error:
                if number == 0:
                    logger.warning("%s: cannot be decoded (%s); skipped", self._manifest.image_paths[row], error)
                continue
            seed = derived_seed("augment", self._seed, number, int(self._manifest.sample_id[row]))
            draw = self._augmentation.draw(scene.mask, seed)
            image, masks[len(rows)] = self._augmentation.square(scene, draw)
            images[len(rows)] = image if self._on_device else self._augmentation.recolour(image, draw)
            rows.append(row)
            draws.append(draw)
        return SceneBatch(
            images=images[: len(rows)],
            masks=masks[: len(rows)],
            skipped=len(places) - len(rows),
            augmentation=self._augmentation,
            sample_ids=self._manifest.sample_id[rows],
            colours=tuple(draws) if self._on_device else (),
        )


class SceneBatches:
    """The steps of each interval, as far as this process takes part in them.

    Args:
        dataset: of the training split.
        batch_size: scenes of a step, over all processes; where the split has fewer, some come again, augmented otherwise.
        micro_batch: scenes of a forward pass.
        workers: loader processes, of this process.
        interval_iterations: steps of an interval, the engine's epoch.
        processes: of the training.

    Attributes:
        batch_size, micro_batch: as given; the second at most the first.
        steps_per_epoch: interval_iterations.

    Raises:
        DataError: there is no scene.
        ConfigError: the processes cannot share a step's micro-batches evenly.
    """

    def __init__(
        self, dataset: SceneTrainingSet, *, batch_size: int, micro_batch: int, workers: int, interval_iterations: int,
        processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        self._dataset, self._workers = dataset, workers
        places = batch_size * interval_iterations if len(dataset) else 0
        self._plan = BatchPlan(
            lambda interval: np.arange(interval * places, (interval + 1) * places),
            places, batch_size=batch_size, micro_batch=micro_batch, processes=processes,
            key="machine.segment_micro_batch",
        )  # fmt: skip
        self.batch_size, self.micro_batch = self._plan.batch_size, self._plan.micro_batch
        self.steps_per_epoch = self._plan.steps_per_epoch

    def __call__(self, epoch: int, first_step: int) -> Iterator[list[SceneBatch]]:
        """Yields this process's micro-batches of each step of an interval, from `first_step` on."""
        steps = load_steps(
            self._dataset, list(self._plan.steps(epoch, first_step)), int,
            workers=self._workers, prefetch_batches=self._dataset.prefetch_batches,
        )  # fmt: skip
        for step in steps:
            yield [replace(loaded, index=micro.index) for micro, loaded in step]
