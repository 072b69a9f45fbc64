"""The loss of a training for segmentation: cross entropy of every pixel, of the head and of the auxiliary head.

Called by the loop through `SceneLoss.loss`. Logits are resized to the mask, not the mask to them, in float32 whatever the
precision. An image's loss is the sum over its labelled pixels divided by all its pixels, as mmsegmentation computes it by default:
so a step's loss is the mean over its images however they are cut into micro-batches, and an image ignored throughout adds 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.scenes import IGNORED


def pixel_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy of pixels: summed over the labelled ones, divided by the number of all.

    With float32 logits of K classes at the masks' size it holds three arrays of 4 K bytes a pixel at once (logits, their
    softmax, its gradient): 0.5 GB for an image of 512 x 512 px and 150 classes.

    Args:
        logits: (batch, classes, rows, cols), of any resolution and precision.
        masks: integer (batch, height, width), class indices or IGNORED.

    Returns:
        float32 scalar.
    """
    resized = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    total: Tensor = F.cross_entropy(resized, masks.long(), ignore_index=IGNORED, reduction="sum")
    return total / masks.numel()


class SceneLoss:
    """The loss as the loop calls it.

    Args:
        auxiliary_weight: of the auxiliary head's loss.
        has_auxiliary: whether the segmenter has such a head.

    Attributes:
        parts: names of the loss's parts: pixel_loss, auxiliary_loss, and unlabeled, the images that are ignored throughout.
    """

    def __init__(self, auxiliary_weight: float, *, has_auxiliary: bool) -> None:
        self._weight = auxiliary_weight
        self.parts = ("pixel_loss", *(("auxiliary_loss",) if has_auxiliary else ()), "unlabeled")

    def loss(self, model: nn.Module, batch: Any, epoch: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and its parts.

        Args:
            model: the segmenter in training mode, wrapped or not.
            batch: images (batch, 3, height, width), normalised; masks (batch, height, width).
            epoch, step: not used: a loss draws nothing.
        """
        output = model(batch.images)
        loss = pixel_cross_entropy(output.logits, batch.masks)
        unlabeled = (batch.masks == IGNORED).flatten(1).all(1).sum()
        parts = {"pixel_loss": loss, "unlabeled": unlabeled}
        if output.auxiliary is not None:
            parts["auxiliary_loss"] = pixel_cross_entropy(output.auxiliary, batch.masks)
            loss = loss + self._weight * parts["auxiliary_loss"]
        return loss, parts


def memory_mb(num_classes: int, crop_px: int, micro_batch: int) -> float:
    """MB (of 2**20 bytes) that `pixel_cross_entropy` holds at its peak, for the log."""
    return 3 * torch.finfo(torch.float32).bits / 8 * num_classes * crop_px**2 * micro_batch / 2**20
