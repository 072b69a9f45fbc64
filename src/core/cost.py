"""The cost model's arithmetic: multiply-adds and an achieved rate give seconds; classes and cells give bytes.

Called by `plan` for what a study costs, and through it by the rules for the time limits that they ask Slurm for; those are
generous by `MARGIN`, because a job that is cut off loses more than a job that waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOPS_PER_MULTIPLY_ADD = 2.0
TRAINING_FACTOR = 3.0  # forward once, backward twice the forward
MARGIN = 2.0
SMALLEST_MINUTES = 20
EVALUATION_MINUTES = 60  # at least, for decoding may be what takes long
MANIFEST_MINUTES = 120  # listing is the file system's time, which no model of ours knows
ANNOTATOR_PX = 576  # side at which the catalogue gives annotators' multiply-adds

# Stored bytes of a map: `fast` holds 16-bit scores and class ids as they are, `compact` is what real maps came to
# (bench/results/label_compression.jsonl: straight lines through k of 3, 5, 8 and 10; a test compares).
FAST_BYTES = {"map": 49.0, "class": 4.0, "tail": 2.0}  # class, tail: of each cell
COMPACT_BYTES = {"map": 170.0, "class": 2.11, "tail": 1.3}
WIDE_ID_CLASSES = 65_536  # above so many classes an id takes two bytes more

# Memory of the job that lists the photographs (bench/scale.py: 430 bytes of each), with room for the imports and longer names.
MANIFEST_MB, MANIFEST_BYTES_PER_IMAGE = 4000, 600

FLOAT32_BYTES = 4
CHECKPOINTS_KEPT = 2  # the last two
CHECKPOINT_COPIES = 4  # weights, their average, AdamW's two moments


@dataclass(frozen=True)
class Rates:
    """What one GPU achieves.

    Attributes:
        train_tflops: 10^12 floating-point operations a second in training steps.
        infer_tflops: the same in forward passes.
        job_start_s: seconds that a job holds its GPU before it works.
    """

    train_tflops: float
    infer_tflops: float
    job_start_s: float

    def infer_seconds(self, images: float, gmacs: float) -> float:
        """Seconds of one forward pass over `images` photographs of `gmacs` 10^9 multiply-adds each."""
        return images * gmacs * 1e9 * FLOPS_PER_MULTIPLY_ADD / (self.infer_tflops * 1e12)

    def train_seconds(self, images: float, gmacs: float) -> float:
        """Seconds of forward and backward passes over `images` photographs."""
        operations = images * gmacs * 1e9 * FLOPS_PER_MULTIPLY_ADD * TRAINING_FACTOR
        return operations / (self.train_tflops * 1e12)


def limit_minutes(
    seconds: float, attempt: int = 1, longest_h: float | None = None, smallest: int = SMALLEST_MINUTES
) -> int:
    """Minutes to ask a scheduler for.

    Args:
        seconds: that the job should take.
        attempt: from 1; each asks for as much again.
        longest_h: hours that the scheduler allows a job; None: any.
        smallest: minutes that the first attempt gets at least.
    """
    minutes = attempt * max(smallest, math.ceil(MARGIN * seconds / 60))
    return minutes if longest_h is None else max(1, min(minutes, int(60 * longest_h)))


def epochs_within(hours: float, start_s: float, epoch_s: float) -> int:
    """Epochs that a job of so many hours should do although they take `MARGIN` times what is estimated; one at least."""
    return max(1, int((hours * 3600 / MARGIN - start_s) / epoch_s))


def multiply_adds_at(gmacs: float, image_px: int, target_px: int) -> float:
    """Multiply-adds at another resolution, by the number of pixels: right for convolutions.

    Attention grows faster, 9 % more for LV-ViT-S at 384 px, which `lvvit_size` counts exactly.
    """
    return gmacs * (target_px / image_px) ** 2


def map_bytes(cells: int, k: int, num_classes: int, *, tail: bool, storage: str) -> float:
    """Bytes of one stored score map.

    Args:
        cells: rows times columns.
        k: classes kept of each cell.
        num_classes: of the annotator.
        tail: whether the log-sum-exp of the other logits is stored.
        storage: compact or fast.
    """
    bytes_of = FAST_BYTES if storage == "fast" else COMPACT_BYTES
    wide = bytes_of["class"] / 2 if num_classes > WIDE_ID_CLASSES else 0.0
    of_cell = k * (bytes_of["class"] + wide) + (bytes_of["tail"] if tail else 0.0)
    return bytes_of["map"] + cells * of_cell


def manifest_mem_mb(images: int) -> int:
    """MB of memory to ask a scheduler for, for the job that lists so many photographs."""
    return MANIFEST_MB + images * MANIFEST_BYTES_PER_IMAGE // 10**6


def checkpoint_bytes(parameters_m: float) -> float:
    """Bytes that a training's checkpoints take while it runs; they go when it is finished."""
    return CHECKPOINTS_KEPT * CHECKPOINT_COPIES * FLOAT32_BYTES * parameters_m * 1e6


def weights_bytes(parameters_m: float, *, averaged: bool) -> float:
    """Bytes of a finished training's weights, and of their average where the recipe keeps one."""
    return (2 if averaged else 1) * FLOAT32_BYTES * parameters_m * 1e6
