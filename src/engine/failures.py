"""What a training says when it cannot go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..core.errors import TokenLabelError


class TrainingError(TokenLabelError):
    """A training that cannot go on."""


def explain_non_finite(
    *, epoch: int, step: int, values: dict[str, float], learning_rate: float, checkpoint: str | None, sample_paths: list[str]
) -> TrainingError:  # fmt: skip
    """The error of a loss that is not finite."""
    return TrainingError(
        f"epoch {epoch}, step {step}: the loss is not finite ({values}), learning rate {learning_rate:g}. Lower learning_rate, set "
        f"clip_norm, or use machine.precision float32. Last checkpoint: {checkpoint}. Photographs: {', '.join(sample_paths)}."
    )


@contextlib.contextmanager
def explaining_memory(machine: dict[str, Any]) -> Iterator[None]:
    """Within the block running out of memory is a TrainingError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"out of memory ({error}). Lower machine.micro_batch.") from error
