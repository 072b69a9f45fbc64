"""Training batches: augmented photographs with their score maps, in an order that depends on the seed alone.

A step's photographs are cut into micro-batches for the device; unreadable photographs are left out and counted. Pixels stay
uint8 until they are on the device, which normalises and erases a micro-batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..core.log import logger
from ..core.seeds import derived_seed
from ..data.images import UnreadableImageError
from ..data.manifest import Manifest
from ..data.photographs import open_photographs
from ..data.pixels import normalise
from ..engine.batch_plan import BatchPlan
from ..engine.loading import load_steps
from ..engine.processes import ALONE, Processes
from ..labels import LabelStore, map_affine
from ..labels.records import STATUS_OK, STATUS_PENDING, STATUS_UNREADABLE
from .augment import Augmentation, Draw, inside
from .reading_order import ReadingOrder


@dataclass(frozen=True)
class PixelWork:
    """What the device still has to do to a micro-batch's pixels.

    Attributes:
        augmentation: of the run.
        draws: one per photograph.
        noise: float32 (values,), of all erased boxes, one after the other.
        crops: uint8 (values,), of photographs that the device resizes and augments, each (height, width, 3), one after the
            other, because a loader process hands over each tensor by a file descriptor; empty where the loader augments.
    """

    augmentation: Augmentation
    draws: tuple[Draw, ...]
    noise: Tensor
    crops: Tensor

    def done(self, squares: Tensor, device: torch.device) -> Tensor:
        """Augments where that is left, normalises and erases.

        Args:
            squares: uint8 (batch, 3, image_px, image_px) of the loader, empty where the device makes them.
            device: where to.

        Returns:
            float32 (batch, 3, image_px, image_px).
        """
        augmentation = self.augmentation
        if self.crops.numel():
            shapes = [(*draw.crop[2:], 3) for draw in self.draws]
            crops = self.crops.to(device, non_blocking=True).split_with_sizes([math.prod(shape) for shape in shapes])
            squares = torch.stack([
                augmentation.square(crop.view(shape).permute(2, 0, 1), draw)
                for crop, shape, draw in zip(crops, shapes, self.draws, strict=True)
            ])  # fmt: skip
        images = normalise(
            squares.to(device, non_blocking=True), augmentation.mean, augmentation.std, torch.contiguous_format
        )
        boxes = [inside(image, draw.erased) for image, draw in zip(images, self.draws, strict=True) if draw.erased]
        noise = self.noise.to(device, non_blocking=True).split_with_sizes([box.numel() for box in boxes])
        for box, values in zip(boxes, noise, strict=True):
            box.copy_(values.view(box.shape))
        return images


@dataclass(frozen=True)
class MicroBatch:
    """What the device gets at once.

    Attributes:
        images: (batch, 3, image_px, image_px); uint8 from the loader, float32 and normalised after `to`.
        class_index: int64 (batch,).
        affine: float32 (batch, 2, 3), normalised view -> normalised score map.
        scores, classes: (batch, rows, cols, k) of the store, None without labels; tail (batch, rows, cols) or None.
        skipped: photographs that could not be decoded.
        index: its number in the step, from 0, over all processes.
        sample_ids: uint64 (batch,).
        work: what `to` does to the pixels; None once it is done.
    """

    images: Tensor
    class_index: Tensor
    affine: Tensor
    scores: Tensor | None
    classes: Tensor | None
    tail: Tensor | None
    skipped: int
    index: int = 0
    sample_ids: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    work: PixelWork | None = None

    @property
    def images_count(self) -> int:
        """Photographs in it."""
        return len(self.class_index)

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on a device, its images ready for the model."""
        if self.work is None or not self.images_count:
            return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(self, images=self.work.done(self.images, device), work=None).to(device)

    def pin_memory(self) -> MicroBatch:
        """The same batch in memory that a GPU copies from by itself; the loader calls it."""
        work = self.work
        if work is not None:
            work = replace(work, noise=work.noise.pin_memory(), crops=work.crops.pin_memory())
        return replace(self._mapped(Tensor.pin_memory), work=work)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        names = ("images", "class_index", "affine", "scores", "classes", "tail")
        present: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in present.items()}
        return replace(self, **changed)


class TrainingSet(Dataset[MicroBatch]):
    """Augmented photographs; indexed by (epoch, row), so that workers need no state.

    Args:
        manifest: of the training split.
        machine: roots, decode_cache, augment_on_gpu, prefetch_batches.
        augmentation: of the run; its recipe says how photographs are read, too.
        store: the labels, or None.
        seed: of the run.

    Attributes:
        rows: of the photographs that take part.
        unreadable: how many could not be read by stage 1, and do not.
        order: (epoch) -> the rows in the order of that epoch.
        prefetch_batches: micro-batches that a loader process makes ahead.
    """

    def __init__(
        self,
        manifest: Manifest,
        machine: dict[str, Any],
        augmentation: Augmentation,
        store: LabelStore | None,
        seed: int,
    ) -> None:
        self._manifest, self._augmentation, self._store, self._seed = manifest, augmentation, store, seed
        self._photographs = open_photographs(manifest, machine, augmentation.recipe["cache_short_side_px"])
        self._on_device = machine["augment_on_gpu"]
        self.prefetch_batches: int = machine["prefetch_batches"]
        # the released geometry takes any map for one of the whole photograph
        self._maps_view = "squash" if store is None or augmentation.geometry == "released" else store.view
        self.rows, self.unreadable = self._usable_rows()
        self.order = ReadingOrder(manifest, self.rows, augmentation.recipe, seed)

    def _usable_rows(self) -> tuple[NDArray[np.int64], int]:
        """Rows whose photograph has a label where labels are learned from, and how many stage 1 could not read.

        Whether enough have one, the preflight says.
        """
        rows = np.arange(len(self._manifest))
        if self._store is None:
            return rows, 0
        status = self._store.status_of(self._manifest.sample_id, absent=STATUS_PENDING)
        return rows[status == STATUS_OK], int((status == STATUS_UNREADABLE).sum())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> MicroBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> MicroBatch:
        """The micro-batch of some (epoch, row); the loader asks for whole ones."""
        worker = get_worker_info()
        if indices and (worker is None or worker.id == 0):
            self.order.read_ahead(self._photographs.source, *indices[0])
        read = [(row, *found) for epoch, row in indices if (found := self._read(epoch, row)) is not None]
        rows = np.array([row for row, *_ in read], np.int64)
        draws = tuple(draw for *_, draw in read)
        ids = self._manifest.sample_id[rows]
        affine = torch.from_numpy(np.array([draw.affine for draw in draws], np.float32).reshape(-1, 2, 3))
        maps = None
        if self._store is not None:
            maps = self._store.get_many(ids)
            sizes = np.array([size for _, _, size, _ in read]).reshape(-1, 2)
            affine = map_affine(self._maps_view, sizes, affine)
        pixels = [pixels for _, pixels, *_ in read]
        noise = [self._augmentation.noise(draw) for draw in draws if draw.erased is not None]
        return MicroBatch(
            images=torch.empty(0) if self._on_device or not pixels else torch.stack(pixels),
            class_index=torch.from_numpy(self._manifest.class_index[rows].astype(np.int64)),
            affine=affine,
            scores=_as_tensor(maps.scores) if maps is not None else None,
            classes=_as_tensor(maps.classes) if maps is not None else None,
            tail=_as_tensor(maps.tail) if maps is not None else None,
            skipped=len(indices) - len(read),
            sample_ids=ids,
            work=PixelWork(
                self._augmentation, draws, noise=_flat(noise),
                crops=_flat([crop.permute(1, 2, 0) for crop in pixels] if self._on_device else []),
            ),
        )  # fmt: skip

    def _read(self, epoch: int, row: int) -> tuple[Tensor, tuple[int, int], Draw] | None:
        """Pixels of the square, or of the crop that the device makes it of, the photograph's height and width, and its draw."""
        try:
            photograph = self._photographs.pixels(row)
        except UnreadableImageError as error:
            if epoch == 0:
                logger.warning("%s: cannot be decoded (%s); skipped", self._manifest.path(row), error)
            return None
        height, width = photograph.shape[1:]
        draw = self._augmentation.draw(
            height, width, derived_seed("augment", self._seed, epoch, int(self._manifest.sample_id[row]))
        )
        cropped = inside(photograph, draw.crop)
        return cropped if self._on_device else self._augmentation.square(cropped, draw), (height, width), draw


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.empty(0)


def _as_tensor(array: NDArray[Any] | None) -> Tensor | None:
    if array is None:
        return None
    # torch has few operations on unsigned types; class indices fit 32 bits
    return torch.from_numpy(array.astype(np.int32) if array.dtype.kind == "u" else array)


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
        steps = load_steps(
            self._dataset, list(self._plan.steps(epoch, first_step)), lambda row: (epoch, row),
            workers=self._workers, prefetch_batches=self._dataset.prefetch_batches,
        )  # fmt: skip
        for step in steps:
            yield [replace(loaded, index=micro.index) for micro, loaded in step]
