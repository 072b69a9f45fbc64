"""Top-1 and top-5 of a model over a split; used during training and by the evaluation stage."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from ..core.errors import DataError
from ..core.log import logger
from ..data.images import UnreadableImageError, decode_image, resize_and_centre_crop, to_tensor
from ..data.manifest import Manifest
from .device import autocast

Item = tuple[torch.Tensor, int] | None


class CenterCrops(Dataset[Item]):
    """Photographs as evaluation sees them; None for one that cannot be decoded."""

    def __init__(
        self, manifest: Manifest, machine: dict[str, Any], image_px: int, crop: float,
        interpolation: Literal["bilinear", "bicubic"], mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        self._manifest = manifest
        self._source = manifest.open_source(machine)
        self._image_px, self._crop, self._interpolation = image_px, crop, interpolation
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, row: int) -> Item:
        try:
            picture = decode_image(self._manifest.read(self._source, row))
        except UnreadableImageError as error:
            logger.warning("%s: cannot be decoded (%s); left out of the accuracy", self._manifest.path(row), error)
            return None
        square = resize_and_centre_crop(picture, self._image_px, self._crop, self._interpolation)
        return to_tensor(square, self._mean, self._std), int(self._manifest.class_index[row])


def _collate(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor, int]:
    read = [item for item in items if item is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0)
    return images, torch.tensor([index for _, index in read], dtype=torch.long), len(items) - len(read)


@torch.inference_mode()
def measure_accuracy(
    model: nn.Module,
    crops: CenterCrops,
    machine: dict[str, Any],
    *,
    num_classes: int,
    device: torch.device,
    precision: torch.dtype,
) -> dict[str, float]:
    """Runs a model over a split.

    Returns:
        top1 and top5 in percent, images counted, images skipped.

    Raises:
        DataError: the split has no readable photograph.
    """
    was_training = model.training
    model.eval().to(device)
    top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro").to(device)
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro").to(device)
    loader = DataLoader(crops, batch_size=machine["micro_batch"], num_workers=machine["workers"], collate_fn=_collate)
    counted = skipped = 0
    for images, classes, unreadable in loader:
        skipped += unreadable
        if not len(classes):
            continue
        with autocast(device, precision):
            logits = model(images.to(device)).float()
        classes = classes.to(device)
        top1.update(logits, classes)
        top5.update(logits, classes)
        counted += len(classes)
    model.train(was_training)
    if not counted:
        raise DataError("the validation split has no readable photograph; add some or set dataset.val_fraction.")
    return {
        "top1": 100 * float(top1.compute()),
        "top5": 100 * float(top5.compute()),
        "val_images": counted,
        "val_skipped": skipped,
    }
