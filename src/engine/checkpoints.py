"""The state of a training between two steps: enough to continue as if nothing had happened.

Called by the loop only; weights for other readers are `models.checkpoints`. Written atomically, so a kill leaves the
previous one. Randomness needs no state: every step draws from a seed derived
from (run seed, epoch, step).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, OutputError
from ..core.files import atomic_path


@dataclass(frozen=True)
class Progress:
    """Where a training stands: `step` optimiser steps of `epoch` are done."""

    epoch: int
    step: int
    totals: dict[str, float]


def save_training_state(path: Path, digest: str, progress: Progress, states: dict[str, Any]) -> None:
    """Writes the training state of the spec with this digest."""
    document = {
        "digest": digest,
        "epoch": progress.epoch,
        "step": progress.step,
        "totals": dict(progress.totals),
        "states": states,
    }
    with atomic_path(path) as temporary:
        try:
            torch.save(document, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk this way
            raise OutputError(
                f"{path}: the training state cannot be written (disk full?); the last one is kept."
            ) from error


def load_training_state(path: Path, digest: str) -> tuple[Progress, dict[str, Any]] | None:
    """Reads the training state; None when there is none yet.

    Raises:
        CheckpointError: it is damaged or of another spec.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not {"digest", "epoch", "step", "totals", "states"} <= saved.keys():
            raise ValueError("not a training state")
    except Exception:  # noqa: BLE001 - pickle raises many types on damaged files, with advice that would mislead here
        raise CheckpointError(f"{path}: damaged, or no training state. Delete it; the run starts over.") from None
    if saved["digest"] != digest:
        raise CheckpointError(f"{path}: training state of spec {saved['digest']}, this run is {digest}. Move it away.")
    return Progress(saved["epoch"], saved["step"], saved["totals"]), saved["states"]
