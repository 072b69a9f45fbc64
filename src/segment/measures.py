"""How well a segmenter's classes agree with masks: mean intersection over union, pixel accuracy, and the IoU of each class.

Called by the validations of a training and by the evaluation. Pixels are counted as whole numbers in one table, so the measures do
not depend on the order or the sharing of the scenes; ignored pixels are in no count. Equals torchmetrics' MulticlassJaccardIndex
(macro) and MulticlassAccuracy (micro), which need a table of the same size.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Confusion:
    """Pixels by their class in the mask and the class that was predicted.

    Args:
        num_classes: classes of a pixel.

    Attributes:
        pixels: int64 (classes, classes), by class of the mask, then of the prediction; on the CPU.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pixels = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, mask: Tensor) -> None:
        """Counts the pixels of a scene.

        Args:
            predicted: integer, any shape, classes from 0.
            mask: the same of the truth; pixels below 0 are ignored.

        Raises:
            ValueError: the shapes differ.
        """
        if predicted.shape != mask.shape:
            raise ValueError(f"predicted classes are {tuple(predicted.shape)}, the mask is {tuple(mask.shape)}")
        counted = mask >= 0
        pairs = mask[counted].long() * self.num_classes + predicted[counted].long()
        self.pixels += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.pixels).cpu()

    @property
    def class_pixels(self) -> Tensor:
        """int64 (classes,): pixels of each class in the masks."""
        return self.pixels.sum(1)

    @property
    def class_iou(self) -> Tensor:
        """float64 (classes,), in percent; nan for a class that is neither in a mask nor predicted anywhere."""
        both = self.pixels.diagonal()
        union = self.pixels.sum(0) + self.pixels.sum(1) - both
        return 100.0 * both.double() / union.double()

    @property
    def miou(self) -> float:
        """Mean over the classes that are in a mask or predicted, in percent; nan without any pixel."""
        return float(self.class_iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels whose class is the mask's, in percent; nan without any pixel."""
        return float(100.0 * self.pixels.diagonal().sum().double() / self.pixels.sum().double())
