"""The processes of one training, on one node or several: who this one is, and what they agree on. Alone by default.

Called by the loop, the batches and the validation. Started by torchrun or by Slurm's srun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those of its training.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number among those of its node, which is also its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, the same on each; a new tensor."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on each; anything that pickles."""
        return value

    def barrier(self) -> None:
        """Waits until all are here."""


ALONE = Processes()


@contextlib.contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Within the block this process is one of its training's."""
    yield ALONE
