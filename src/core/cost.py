"""The cost model: how long a job will take, from multiply-adds and an achieved rate. Arithmetic only.

Used for the time limits that rules ask Slurm for; generous by `MARGIN`, because a job that is cut off loses more than a
job that waits.
"""

from __future__ import annotations

import math

FLOPS_PER_MULTIPLY_ADD = 2.0
BACKWARD_FACTOR = 3.0  # forward once, backward twice the forward
MARGIN = 2.0
SMALLEST_MINUTES = 20


def annotate_minutes(images: int, gmacs: float, tflops: float) -> int:
    """Minutes for one forward pass over `images` photographs of `gmacs` 10^9 multiply-adds each."""
    seconds = images * gmacs * 1e9 * FLOPS_PER_MULTIPLY_ADD / (tflops * 1e12)
    return _limit(seconds)


def train_minutes(images: int, epochs: int, gmacs: float, tflops: float) -> int:
    """Minutes for a training: `epochs` forward and backward passes over `images` photographs on one GPU."""
    seconds = images * epochs * gmacs * 1e9 * FLOPS_PER_MULTIPLY_ADD * BACKWARD_FACTOR / (tflops * 1e12)
    return _limit(seconds)


def multiply_adds_at(gmacs: float, image_px: int, target_px: int) -> float:
    """Multiply-adds at another resolution, by the number of pixels (attention grows faster: 9 % more for S at 384)."""
    return gmacs * (target_px / image_px) ** 2


def _limit(seconds: float) -> int:
    return max(SMALLEST_MINUTES, math.ceil(MARGIN * seconds / 60))
