"""Which process reads which photographs: as one process would read them, whatever the number; what cannot be shared is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenlabel.core.errors import ConfigError, DataError
from tokenlabel.engine.batch_plan import BatchPlan
from tokenlabel.engine.processes import ALONE, Processes


def order(images: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(images)


def plan(images: int, batch_size: int, micro_batch: int, processes: Processes = ALONE) -> BatchPlan:
    return BatchPlan(
        lambda epoch: order(images, epoch), images, batch_size=batch_size, micro_batch=micro_batch, processes=processes
    )


@given(
    images=st.integers(1, 60), batch_size=st.integers(1, 70), micro_batch=st.integers(1, 70), count=st.integers(1, 6),
    first_step=st.integers(0, 3),
)  # fmt: skip
def test_processes_share_what_one_reads(
    images: int, batch_size: int, micro_batch: int, count: int, first_step: int
) -> None:
    alone = plan(images, batch_size, micro_batch)
    try:
        shares = [plan(images, batch_size, micro_batch, Processes(rank, count)) for rank in range(count)]
    except ConfigError:
        assert -(-alone.batch_size // alone.micro_batch) % count
        return
    expected = list(alone.steps(1, first_step))
    assert len(expected) == max(alone.steps_per_epoch - first_step, 0)
    read = [row for step in expected for micro in step for row in micro.rows]
    assert read == order(images, 1)[first_step * alone.batch_size : alone.steps_per_epoch * alone.batch_size].tolist()
    for whole, *parts in zip(expected, *(share.steps(1, first_step) for share in shares), strict=True):
        together = sorted((micro for part in parts for micro in part), key=lambda micro: micro.index)
        assert [micro.index for micro in together] == [micro.index for micro in whole]
        assert all((a.rows == b.rows).all() for a, b in zip(together, whole, strict=True))
        assert len({len(part) for part in parts}) == 1  # every process exchanges gradients in every step


def test_what_cannot_be_shared_names_what_can() -> None:
    with pytest.raises(ConfigError) as raised:
        plan(1000, 100, 32, Processes(0, 3))
    assert str(raised.value) == (
        "batch_size 100 in micro-batches of 32 (machine.micro_batch) makes 4 a step, which 3 processes (machine.processes) cannot "
        "share evenly. Nearest that fit: machine.micro_batch 17 or 34; or batch_size 96 or 192; or machine.processes 2 or 4."
    )
    plan(1000, 100, 17, Processes(0, 3))
    plan(1000, 100, 34, Processes(0, 3))
    plan(1000, 192, 32, Processes(0, 3))
    plan(1000, 100, 32, Processes(0, 2))


def test_fewer_photographs_than_processes() -> None:
    with pytest.raises(ConfigError, match=r"makes 1 a step, which 4 .*: batch_size 8; or machine.processes 1\."):
        plan(2, 20, 5, Processes(0, 4))


def test_no_photographs() -> None:
    with pytest.raises(DataError, match="no readable photograph"):
        plan(0, 4, 2)
