"""Top-1 and top-5 of a model over a split; used during training and by the evaluation stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset

from ..core.errors import DataError
from ..core.log import logger
from ..data.images import UnreadableImageError, decode_image, resize_and_centre_crop, to_tensor
from ..data.manifest import Manifest
from .device import autocast
from .processes import ALONE, Processes

Item = tuple[torch.Tensor, int] | None


class CenterCrops(Dataset[Item]):
    """Photographs as evaluation sees them; None for one that cannot be decoded."""

    def __init__(
        self, manifest: Manifest, machine: dict[str, Any], image_px: int, crop: float,
        interpolation: Literal["bilinear", "bicubic"], mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        self._manifest = manifest
        self._source = manifest.open_source(machine)
        self.image_px, self._crop, self._interpolation = image_px, crop, interpolation
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, row: int) -> Item:
        try:
            picture = decode_image(self._manifest.read(self._source, row))
        except UnreadableImageError as error:
            logger.warning("%s: cannot be decoded (%s); left out of the accuracy", self._manifest.path(row), error)
            return None
        square = resize_and_centre_crop(picture, self.image_px, self._crop, self._interpolation)
        return to_tensor(square, self._mean, self._std), int(self._manifest.class_index[row])


def _collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor, int]:
    read = [item for item in items if item is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0)
    return images, torch.tensor([index for _, index in read], dtype=torch.long), len(items) - len(read)


def share_batches(images: int, batch: int, processes: Processes) -> list[list[int]]:
    """Rows of the batches that a process measures: those of one process dealt out, each once; empty ones make them as many."""
    batches = [list(range(start, min(start + batch, images))) for start in range(0, images, batch)]
    batches += [[]] * (-len(batches) % processes.count)
    return batches[processes.rank :: processes.count]


@torch.no_grad()  # inference mode would not do: shares of weights are made anew in it and could not be trained on
def measure_accuracy(
    model: nn.Module,
    crops: CenterCrops,
    machine: dict[str, Any],
    *,
    num_classes: int,
    device: torch.device,
    precision: torch.dtype,
    processes: Processes = ALONE,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Runs a model over a split; several processes share the photographs, and each gets the numbers of all.

    Args:
        model: in any mode, which it has again afterwards.
        crops: the split as evaluation sees it.
        machine: micro_batch, workers.
        num_classes: of the model.
        device: where to measure.
        precision: of autocast.
        processes: that share the photographs, each calling this.
        before_batch: called before each batch, equally often in each process; may raise to leave early.

    Returns:
        top1 and top5 in percent, images counted, images skipped: the same ones whatever the number of processes.

    Raises:
        DataError: the split has no readable photograph.
    """
    was_training = model.training
    model.eval().to(device)
    shares = share_batches(len(crops), machine["micro_batch"], processes)
    loader = DataLoader(crops, batch_sampler=shares, num_workers=machine["workers"], collate_fn=_collate)
    counts = torch.zeros(4, dtype=torch.int64)  # photographs counted, skipped, right at once, right within five
    for images, classes, unreadable in loader:
        before_batch()
        if not len(classes) and isinstance(model, FSDPModule):
            images = torch.zeros(1, 3, crops.image_px, crops.image_px)  # the others gather weights with this process
        if len(images):
            with autocast(device, precision):
                logits = model(images.to(device)).float()
        hits = torch.zeros(0, 1, dtype=torch.bool)
        if len(classes):
            hits = logits.topk(min(5, num_classes)).indices.cpu() == classes[:, None]  # (batch, 5)
        counts += torch.stack([torch.tensor(len(classes)), torch.tensor(unreadable), hits[:, 0].sum(), hits.sum()])
    model.train(was_training)
    counted, skipped, first, five = processes.sum(counts).unbind()
    if not counted:
        raise DataError("the validation split has no readable photograph; add some or set dataset.val_fraction.")
    return {
        "top1": 100 * int(first) / int(counted),
        "top5": 100 * int(five) / int(counted),
        "val_images": int(counted),
        "val_skipped": int(skipped),
    }
