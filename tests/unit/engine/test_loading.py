"""Micro-batches come in the plan's order, whoever loads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from torch.utils.data import Dataset, get_worker_info

from tokenlabel.engine.batch_plan import BatchPlan
from tokenlabel.engine.loading import load_steps
from tokenlabel.engine.processes import Processes


class Squares(Dataset[tuple[list[int], int | None]]):
    """A micro-batch is the squares of its items, and the number of the process that made it."""

    def __getitems__(self, items: Sequence[int]) -> tuple[list[int], int | None]:
        worker = get_worker_info()
        return [item**2 for item in items], None if worker is None else worker.id


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_come_in_the_plans_order(workers: int) -> None:
    plan = BatchPlan(lambda epoch: np.arange(20)[::-1], 20, batch_size=8, micro_batch=2, processes=Processes(1, 2))
    planned = list(plan.steps(0))
    loaded = list(load_steps(Squares(), planned, lambda row: row + 100, workers=workers, prefetch_batches=2))
    assert [[micro for micro, _ in step] for step in loaded] == planned
    assert [[squares for _, (squares, _) in step] for step in loaded] == [
        [[117**2, 116**2], [113**2, 112**2]],
        [[109**2, 108**2], [105**2, 104**2]],
    ]
    made_by = {worker for step in loaded for _, (_, worker) in step}
    assert made_by == ({0, 1} if workers else {None})
