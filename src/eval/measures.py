"""What a model's answers over a set of photographs are worth: top-1, top-5, calibration, each class, ImageNet-ReaL.

Called by `evaluation` and by `tokenlabel evaluate`; the validations during training count by themselves (engine.validation).
The answers are those of the model's own eval rule. Counts are whole numbers, so a share does not depend on the batch. Source:
torchmetrics; Guo et al. 2017 for the expected calibration error, with 15 bins.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassCalibrationError, MulticlassStatScores

from ..core.errors import CheckpointError, DataError
from ..data.manifest import Manifest
from ..engine.device import autocast
from ..engine.validation import CenterCrops
from .numbered import NumberedCrops, collate

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassAccuracy:
    """How well one class is recognised.

    Attributes:
        class_index: the model's.
        top1: % of its photographs; None without any.
        confidence: mean probability of the best class over its photographs, in [0, 1]; None without any.
    """

    class_index: int
    name: str
    images: int
    top1: float | None
    confidence: float | None


@dataclass(frozen=True)
class Measured:
    """What `measure_answers` gives; accuracies and calibration error in percent.

    Attributes:
        images, skipped: photographs counted, and those that could not be decoded.
        real_top1, real_images: right by the reassessed labels, of the photographs that have some; None without such labels.
    """

    top1: float
    top5: float
    ece: float
    images: int
    skipped: int
    classes: tuple[ClassAccuracy, ...]
    real_top1: float | None = None
    real_images: int | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers of a further test set's entry in an evaluation."""
        return {
            "top1": self.top1, "top5": self.top5, "ece": self.ece, "images": self.images, "skipped": self.skipped,
            "classes": len(self.classes),
        }  # fmt: skip


class Tally:
    """Sums over batches of answers.

    Args:
        num_classes: that are told apart.
    """

    def __init__(self, num_classes: int) -> None:
        self._first = MulticlassStatScores(num_classes, average=None, validate_args=False)
        self._five = MulticlassStatScores(num_classes, top_k=min(5, num_classes), average=None, validate_args=False)
        self._calibration = MulticlassCalibrationError(num_classes, CALIBRATION_BINS, norm="l1", validate_args=False)
        self._confidence = torch.zeros(num_classes, dtype=torch.float64)
        self._real_right = self._real_images = 0

    def add(self, logits: Tensor, classes: Tensor, real: Sequence[Sequence[int]] | None) -> None:
        """Adds a batch.

        Args:
            logits: float32 (batch, classes), finite.
            classes: int64 (batch,).
            real: of each photograph, the classes that are right; an empty one does not count. None: no such labels.
        """
        probability = logits.softmax(-1)
        confidence, best = probability.max(-1)
        self._first.update(best, classes)
        self._five.update(logits, classes)
        self._calibration.update(probability, classes)
        self._confidence.index_add_(0, classes, confidence.double())
        if real is not None:
            answered = [(answer, right) for answer, right in zip(best.tolist(), real, strict=True) if right]
            self._real_images += len(answered)
            self._real_right += sum(answer in right for answer, right in answered)

    def result(self, names: Sequence[str], indices: Sequence[int], skipped: int, *, with_real: bool) -> Measured:
        """The measures of everything added, at least one photograph.

        Args:
            names: of the classes.
            indices: the model's number of each.
            skipped: photographs that could not be decoded.
            with_real: reassessed labels were given.
        """
        first, five = self._first.compute(), self._five.compute()  # (classes, 5): column 0 right, column 4 photographs
        right, images = first[:, 0].tolist(), first[:, 4].tolist()
        total = sum(images)
        return Measured(
            top1=100 * sum(right) / total,
            top5=100 * int(five[:, 0].sum()) / total,
            ece=100 * float(self._calibration.compute()),
            images=total,
            skipped=skipped,
            classes=tuple(
                ClassAccuracy(
                    index, name, count, 100 * hits / count if count else None, confidence / count if count else None
                )
                for index, name, hits, count, confidence in zip(
                    indices, names, right, images, self._confidence.tolist(), strict=True
                )
            ),
            real_top1=100 * self._real_right / self._real_images if with_real else None,
            real_images=self._real_images if with_real else None,
        )


@torch.inference_mode()
def measure_answers(
    model: nn.Module,
    crops: CenterCrops,
    manifest: Manifest,
    machine: dict[str, Any],
    *,
    columns: Sequence[int] | None,
    real: Sequence[Sequence[int]] | None = None,
    where: str,
    device: torch.device,
    precision: torch.dtype,
) -> Measured:
    """Runs a model over photographs.

    Args:
        model: in eval mode, on the device.
        crops: what it sees of them.
        manifest: of the same photographs.
        machine: micro_batch, workers.
        columns: the model's class for each of the manifest's; its other logits are left out. None: the same classes.
        real: reassessed labels by the manifest's rows.
        where: the checkpoint, for errors.
        device: of the model.
        precision: of autocast.

    Raises:
        CheckpointError: logits that are no finite numbers.
        DataError: no photograph can be read, or none has a reassessed label.
    """
    loader = DataLoader(
        NumberedCrops(crops), batch_size=machine["micro_batch"], num_workers=machine["workers"], collate_fn=collate
    )
    tally, counted = Tally(len(manifest.classes)), 0
    for rows, images in loader:
        if not len(rows):
            continue
        with autocast(device, precision):
            logits = model(images.to(device))
        logits = logits.float().cpu()
        if not logits.isfinite().all():
            first = int((~logits.isfinite().all(-1)).nonzero()[0])
            raise CheckpointError(
                f"checkpoint {where}: its logits of {manifest.path(int(rows[first]))} are NaN or infinite in {precision}. Set "
                "machine.precision: float32; if they stay so, the training diverged: take another checkpoint."
            )
        if columns is not None:
            logits = logits[:, list(columns)]
        classes = torch.from_numpy(manifest.class_index[rows]).long()
        tally.add(logits, classes, None if real is None else [real[row] for row in rows])
        counted += len(rows)
    if not counted:
        raise DataError(f"split {manifest.split}: none of its {len(manifest)} photographs can be read.")
    if real is not None and not any(real):
        raise DataError("evaluation.real_labels: no photograph of the split has a label there. Set it to null.")
    indices = range(len(manifest.classes)) if columns is None else columns
    return tally.result(manifest.classes, indices, len(manifest) - counted, with_real=real is not None)


def classes_csv(classes: Sequence[ClassAccuracy]) -> str:
    """A line for each class: the model's index, folder name, photographs, top-1 in %, mean confidence in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class_index", "folder", "images", "top1", "mean_confidence"])
    for entry in classes:
        top1 = "" if entry.top1 is None else f"{entry.top1:.2f}"
        confidence = "" if entry.confidence is None else f"{entry.confidence:.4f}"
        writer.writerow([entry.class_index, entry.name, entry.images, top1, confidence])
    return out.getvalue()
