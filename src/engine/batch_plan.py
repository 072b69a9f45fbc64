"""Which photographs make which micro-batch of which step, and which process reads it: the same ones whatever the number.

Called by the stages' batches. A step's micro-batch number j belongs to process j % count, so each process has as many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.recipes import check_shares
from .processes import Processes

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class PlannedBatch:
    """A micro-batch: its number in the step over all processes, and its rows of the manifest."""

    index: int
    rows: Rows


class BatchPlan:
    """The steps of each epoch.

    A step is `batch_size` photographs in micro-batches of at most `micro_batch`, of which the last may be smaller. A last
    incomplete step is dropped, unless the data set is smaller than one batch.

    Args:
        order: epoch -> the rows of all usable photographs in the epoch's order.
        images: how many those are.
        batch_size: photographs of a step, over all processes.
        micro_batch: photographs of a forward pass.
        processes: of the training.
        key: of the setting that says `micro_batch`, for errors.

    Attributes:
        batch_size, micro_batch: as given, or all photographs where they are fewer.
        steps_per_epoch: whole steps of an epoch.

    Raises:
        DataError: there is no photograph.
        ConfigError: the processes cannot share a step's micro-batches evenly.
    """

    def __init__(
        self, order: Callable[[int], Rows], images: int, *, batch_size: int, micro_batch: int, processes: Processes,
        key: str = "machine.micro_batch",
    ) -> None:  # fmt: skip
        if not images:
            raise DataError("the training split has no readable photograph; nothing can be trained.")
        self._order, self._processes = order, processes
        self.batch_size = min(batch_size, images)
        self.micro_batch = min(micro_batch, self.batch_size)
        self.steps_per_epoch = images // self.batch_size
        check_shares(self.batch_size, self.micro_batch, processes.count, key=key)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[list[PlannedBatch]]:
        """This process's micro-batches of each step from `first_step` on."""
        order = self._order(epoch)
        for step in range(first_step, self.steps_per_epoch):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            cuts = range(0, self.batch_size, self.micro_batch)
            yield [
                PlannedBatch(index, rows[start : start + self.micro_batch])
                for index, start in enumerate(cuts)
                if index % self._processes.count == self._processes.rank
            ]
