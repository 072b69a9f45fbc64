"""From planned micro-batches to loaded ones, by processes of their own, in the plan's order; the same whatever their number.

Called by each stage's batches. A stage's data set makes whole micro-batches, so nothing is collated here; signals to stop are
the training's to handle, not the loader processes'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from .batch_plan import PlannedBatch
from .stopping import leave_signals_to_parent

Loaded = TypeVar("Loaded")


def load_steps(
    dataset: Dataset[Loaded], plan: Sequence[Sequence[PlannedBatch]], item: Callable[[int], Any], *,
    workers: int, prefetch_batches: int,
) -> Iterator[list[tuple[PlannedBatch, Loaded]]]:  # fmt: skip
    """Loads steps.

    Args:
        dataset: makes a micro-batch of a list of items (`__getitems__`), and pins it in memory (`pin_memory`).
        plan: micro-batches of each step.
        item: of a planned row: what the data set is asked for.
        workers: loader processes; 0: this one loads.
        prefetch_batches: micro-batches that a loader process makes ahead.

    Yields:
        each step's planned micro-batches, with what was loaded of them.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=[[item(row) for row in micro.rows.tolist()] for step in plan for micro in step],
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=prefetch_batches if workers else None,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
    )
    loaded = iter(loader)
    for step in plan:
        yield [(micro, next(loaded)) for micro in step]


def _as_it_is(batch: Any) -> Any:
    return batch
