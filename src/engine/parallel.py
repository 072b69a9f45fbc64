"""A model as the processes of a training share it: plain when alone, DDP or FSDP otherwise.

Called by the loop, which never asks which one it is.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from .processes import Processes


class ParallelModel:
    """A model on its device, and how its processes exchange gradients.

    Args:
        model: on the device already, in its starting weights.
        processes: of the training.
        sharding: none (each process holds all weights) | fsdp (each holds a share of weights, gradients and optimiser state).
        compiled: torch.compile of what forward calls.

    Attributes:
        model: the plain model (weights, attributes).
        forward: what the loss calls: the same model, wrapped.
    """

    def __init__(
        self, model: nn.Module, processes: Processes, *, sharding: str = "none", compiled: bool = False
    ) -> None:
        self.model = model
        self.forward: nn.Module = model

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """Around forward and backward of every micro-batch but the step's last: gradients stay here (DDP's no_sync)."""
        return contextlib.nullcontext()

    def clip(self, largest_norm: float) -> torch.Tensor:
        """Scales the gradients down to a norm over all processes; returns the norm before."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), largest_norm)

    def states(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole state of model and optimiser; called by every process, needed by the main one."""
        return self.model.state_dict(), optimizer.state_dict()

    def load_states(
        self, optimizer: torch.optim.Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]
    ) -> None:
        """Takes over what `states` gave, in any number of processes."""
        self.model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
