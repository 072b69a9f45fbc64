"""Training batches: augmented photographs with their score maps, in an order that depends on the seed alone.

A step's photographs are cut into micro-batches for the device; unreadable photographs are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.log import logger
from ..core.seeds import derived_seed
from ..data.images import UnreadableImageError, decode_image
from ..data.manifest import Manifest
from ..engine.processes import ALONE, Processes
from ..engine.stopping import leave_signals_to_parent
from ..labels import LabelStore, map_affine
from ..labels.shards import STATUS_OK
from .augment import Augmentation
from .batch_plan import BatchPlan


@dataclass(frozen=True)
class MicroBatch:
    """What the device gets at once.

    Attributes:
        images: float32 (batch, 3, image_px, image_px).
        class_index: int64 (batch,).
        affine: float32 (batch, 2, 3), normalised view -> normalised score map.
        scores, classes: (batch, rows, cols, k) of the store, None without labels; tail (batch, rows, cols) or None.
        skipped: photographs that could not be decoded.
        sample_ids: uint64 (batch,).
        index: number of this micro-batch in its step, over all processes.
    """

    images: torch.Tensor
    class_index: torch.Tensor
    affine: torch.Tensor
    scores: torch.Tensor | None
    classes: torch.Tensor | None
    tail: torch.Tensor | None
    skipped: int
    sample_ids: np.ndarray[Any, Any]
    index: int = 0

    @property
    def images_count(self) -> int:
        """Photographs in it."""
        return len(self.images)

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on a device."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            class_index=self.class_index.to(device, non_blocking=True),
            affine=self.affine.to(device, non_blocking=True),
            scores=moved(self.scores),
            classes=moved(self.classes),
            tail=moved(self.tail),
        )


Item = tuple[torch.Tensor, int, torch.Tensor, Any, int] | None


class TrainingSet(Dataset[Item]):
    """Augmented photographs; indexed by (epoch, row), so that workers need no state."""

    def __init__(
        self,
        manifest: Manifest,
        machine: dict[str, Any],
        augmentation: Augmentation,
        store: LabelStore | None,
        seed: int,
    ) -> None:
        self._manifest, self._augmentation, self._store, self._seed = manifest, augmentation, store, seed
        self._source = manifest.open_source(machine)
        # the released geometry takes any map for one of the whole photograph
        self._maps_view = "squash" if store is None or augmentation.geometry == "released" else store.view
        self.rows, self.unreadable = self._usable_rows()

    def _usable_rows(self) -> tuple[np.ndarray[Any, Any], int]:
        """Rows whose photograph stage 1 could read, and how many it could not."""
        rows = np.arange(len(self._manifest))
        if self._store is None:
            return rows, 0
        readable = self._store.status_of(self._manifest.sample_id) == STATUS_OK
        return rows[readable], int((~readable).sum())

    def order(self, epoch: int) -> np.ndarray[Any, Any]:
        """The rows in the order of an epoch."""
        rng = np.random.default_rng(derived_seed("order", self._seed, epoch))
        shuffled: np.ndarray[Any, Any] = self.rows[rng.permutation(len(self.rows))]
        return shuffled

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> Item:
        epoch, row = index
        identifier = int(self._manifest.sample_id[row])
        try:
            picture = decode_image(self._manifest.read(self._source, row))
        except UnreadableImageError as error:
            if epoch == 0:
                logger.warning("%s: cannot be decoded (%s); skipped", self._manifest.path(row), error)
            return None
        view = self._augmentation(picture, derived_seed("augment", self._seed, epoch, identifier))
        class_index = int(self._manifest.class_index[row])
        if self._store is None:
            return view.image, class_index, view.affine, None, identifier
        size = np.array([[picture.height, picture.width]])
        affine = map_affine(self._maps_view, size, view.affine[None])[0]
        return view.image, class_index, affine, self._store[identifier], identifier


def _collate(items: list[Item]) -> MicroBatch:
    read = [item for item in items if item is not None]
    labels = [label for *_, label, _ in read if label is not None]

    def stacked(name: str) -> torch.Tensor | None:
        arrays = [getattr(label, name) for label in labels]
        if not arrays or arrays[0] is None:
            return None
        array = np.stack(arrays)
        # torch has few operations on unsigned types; class indices fit 32 bits
        return torch.from_numpy(array.astype(np.int32) if array.dtype.kind == "u" else array)

    return MicroBatch(
        images=torch.stack([image for image, *_ in read]) if read else torch.empty(0),
        class_index=torch.tensor([index for _, index, *_ in read], dtype=torch.long),
        affine=torch.stack([affine for _, _, affine, *_ in read]) if read else torch.empty(0, 2, 3),
        scores=stacked("scores"),
        classes=stacked("classes"),
        tail=stacked("tail"),
        skipped=len(items) - len(read),
        sample_ids=np.array([item[-1] for item in read], dtype=np.uint64),
    )


class Batches:
    """The steps of each epoch, as far as this process takes part in them; `BatchPlan` says which photographs.

    Args:
        dataset: of the training split.
        batch_size: photographs of a step, over all processes.
        micro_batch: photographs of a forward pass.
        workers: loader processes, of this process.
        processes: of the training.
    """

    def __init__(
        self, dataset: TrainingSet, *, batch_size: int, micro_batch: int, workers: int, processes: Processes = ALONE
    ) -> None:
        self._dataset, self._workers = dataset, workers
        self._plan = BatchPlan(
            dataset.order, len(dataset), batch_size=batch_size, micro_batch=micro_batch, processes=processes
        )
        self.batch_size, self.micro_batch = self._plan.batch_size, self._plan.micro_batch
        self.steps_per_epoch = self._plan.steps_per_epoch

    def __call__(self, epoch: int, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yields this process's micro-batches of each step of an epoch, from `first_step` on."""
        plan = list(self._plan.steps(epoch, first_step))
        loader = DataLoader(
            self._dataset,
            batch_sampler=[[(epoch, row) for row in micro.rows.tolist()] for step in plan for micro in step],
            collate_fn=_collate,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_parent,
        )
        loaded = iter(loader)
        for step in plan:
            yield [replace(next(loaded), index=micro.index) for micro in step]
