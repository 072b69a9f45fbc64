"""From a batch of photographs to the rows of a shard: the annotator's maps, their best classes, the tail, rounding.

Called by the shard job and by whoever recomputes stored labels, so that both do the same arithmetic. Touches no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import DataError
from ..data.pixels import normalise
from ..engine.device import autocast
from .dense import Annotator


@dataclass(frozen=True)
class MapBatch:
    """Score maps of a batch, still on the device.

    Attributes:
        scores: float16 (batch, rows, cols, k), logits, best first.
        classes: int64 of the same shape.
        tail: float16 (batch, rows, cols), or None where it is not stored.
        finite: bool (batch,), whether all of a photograph's logits are.
    """

    scores: torch.Tensor
    classes: torch.Tensor
    tail: torch.Tensor | None
    finite: torch.Tensor

    def check_finite(self, paths: Sequence[str], readable: Sequence[bool]) -> None:
        """Stops where a photograph's logits are no numbers.

        Raises:
            DataError: with the first such photograph's path.
        """
        for path, counts, finite in zip(paths, readable, self.finite.tolist(), strict=True):
            if counts and not finite:
                raise DataError(
                    f"{path}: the annotator's logits are not finite. Set machine.precision to float32; if it persists, the "
                    "annotator's weights are damaged."
                )


@torch.inference_mode()
def label_batch(annotator: Annotator, images: torch.Tensor, spec: dict[str, Any], precision: torch.dtype) -> MapBatch:
    """Labels a batch.

    Args:
        annotator: in eval mode, on the images' device.
        images: uint8 (batch, 3, image_px, image_px), RGB.
        spec: the label spec.
        precision: of autocast.

    Raises:
        DataError: the map has not the configuration's grid.
    """
    settings = spec["labels"]
    pixels = normalise(images, annotator.preprocessing.mean, annotator.preprocessing.std)
    with autocast(images.device, precision):
        logits = annotator(pixels).float()  # (batch, rows, cols, classes)
    expected = tuple(spec["annotator"]["grid"])
    if tuple(logits.shape[1:3]) != expected:
        raise DataError(
            f"annotator {annotator.architecture}: its map is {tuple(logits.shape[1:3])} at {settings['image_px']} px, "
            f"the configuration says grid {expected}. Correct the annotator's grid."
        )
    finite = logits.isfinite().flatten(1).all(1)
    scores, classes = logits.topk(settings["k"], dim=-1, sorted=True)
    tail = None
    if settings["tail"]:
        # log of the summed exp of what is not stored, without the cancellation of total minus stored
        rest = logits.scatter(-1, classes, float("-inf"))
        tail = round_to_step(rest.logsumexp(-1), settings["score_step"]).half()
    return MapBatch(round_to_step(scores, settings["score_step"]).half(), classes, tail, finite)


def round_to_step(logits: torch.Tensor, step: float) -> torch.Tensor:
    """Rounds to multiples of a step, whose zero bits compress; 0 leaves all as it is."""
    return (logits / step).round() * step if step else logits
