"""From a batch of photographs to the rows of a shard: the annotator's maps, their best classes, the tail, rounding.

Called by the shard job and by whoever recomputes stored labels, so that both do the same arithmetic. Touches no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

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
def label_batch(
    annotator: Annotator,
    images: torch.Tensor,
    spec: dict[str, Any],
    precision: torch.dtype,
    fold: torch.Tensor | None = None,
) -> MapBatch:
    """Labels a batch.

    Args:
        annotator: in eval mode, on the images' device.
        images: uint8 (batch, 3, image_px, image_px), RGB.
        spec: the label spec.
        precision: of autocast.
        fold: int64 (batch,), see `Annotator.forward`.

    Raises:
        DataError: the map has not the configuration's grid.
    """
    settings = spec["labels"]
    pixels = normalise(images, annotator.preprocessing.mean, annotator.preprocessing.std)
    with autocast(images.device, precision):
        logits = average_over_views(annotator, pixels, settings, tuple(spec["annotator"]["grid"]), fold)
    finite = logits.isfinite().flatten(1).all(1)
    scores, classes = logits.topk(settings["k"], dim=-1, sorted=True)
    tail = None
    if settings["tail"]:
        # log of the summed exp of what is not stored, without the cancellation of total minus stored
        rest = logits.scatter(-1, classes, float("-inf"))
        tail = round_to_step(rest.logsumexp(-1), settings["score_step"]).half()
    return MapBatch(round_to_step(scores, settings["score_step"]).half(), classes, tail, finite)


def label_padded(
    annotator: Annotator,
    images: torch.Tensor,
    batch: int,
    spec: dict[str, Any],
    precision: torch.dtype,
    fold: torch.Tensor | None,
) -> MapBatch:
    """`label_batch` for a compiled annotator, which is compiled anew for every size: a last batch is filled up with black."""
    count = len(images)
    filled = images.new_zeros((batch, *images.shape[1:]))
    filled[:count] = images
    folds = None if fold is None else F.pad(fold, (0, batch - count))
    maps = label_batch(annotator, filled, spec, precision, folds)
    # results of CUDA graphs lie in memory that the next run overwrites
    parts = [
        None if part is None else part[:count].clone() for part in (maps.scores, maps.classes, maps.tail, maps.finite)
    ]
    scores, classes, tail, finite = parts
    assert scores is not None
    assert classes is not None
    assert finite is not None
    return MapBatch(scores, classes, tail, finite)


def average_over_views(
    annotator: Annotator,
    pixels: torch.Tensor,
    settings: dict[str, Any],
    grid: tuple[int, int],
    fold: torch.Tensor | None,
) -> torch.Tensor:
    """Logits averaged over the settings' scales and, with `flip`, over each photograph and its mirror image.

    Args:
        annotator: see `label_batch`.
        pixels: float (batch, 3, image_px, image_px), normalised.
        settings: the spec's section labels.
        grid: rows and cols of the maps at scale 1; those of other scales are resampled to it, bilinearly.

    Returns:
        float32 (batch, rows, cols, classes).

    Raises:
        DataError: the annotator's map at scale 1 has another grid.
    """
    total: torch.Tensor | None = None
    views = 0
    for scale in settings["scales"]:
        side = round(settings["image_px"] * scale)
        scaled = pixels if scale == 1 else _resized(pixels, (side, side))
        for mirrored in (False, True) if settings["flip"] else (False,):
            logits = annotator(scaled.flip(-1) if mirrored else scaled, fold).float()
            logits = logits.flip(2) if mirrored else logits
            if tuple(logits.shape[1:3]) != grid:
                if scale == 1:
                    raise DataError(
                        f"annotator {annotator.architecture}: its map is {tuple(logits.shape[1:3])} at {side} px, the "
                        f"configuration says grid {grid}. Correct the annotator's grid."
                    )
                logits = _resized(logits.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
            total = logits.clone() if total is None else total + logits  # a CUDA graph overwrites its last result
            views += 1
    assert total is not None
    return total / views if views > 1 else total


def _resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps.float(), size, mode="bilinear", antialias=True)


def round_to_step(logits: torch.Tensor, step: float) -> torch.Tensor:
    """Rounds to multiples of a step, whose zero bits compress; 0 leaves all as it is."""
    return (logits / step).round() * step if step else logits
