"""Looks before step 1 for what would make a training worthless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.manifest import Manifest
from ..labels import LabelStore


def check_before_training(
    *, spec: dict[str, Any], machine: dict[str, Any], recipe: Any, manifest: Manifest, store: LabelStore | None, batches_size: int,
    processes_count: int, classes: Sequence[str],
) -> None:  # fmt: skip
    """Checks nothing yet."""
