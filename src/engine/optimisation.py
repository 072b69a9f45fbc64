"""A model in training: its optimiser, schedule, loss scaling and averaged weights, and the state of all of them.

Used by the loop only. AdamW, the schedules and weight averaging are timm's. The cosine's rate changes from epoch to epoch, as in
the released code; the linear one's from step to step, as section 4.4 trains segmentation. Both depend on the epoch's or step's
number alone, so a resumed training has the rates of an unbroken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.distributed.tensor import DTensor

from .parallel import ParallelModel, load_whole_state, whole_state
from .processes import Processes


@dataclass(frozen=True)
class LinearSchedule:
    """A rate that changes with every step: linearly up while it warms up, then linearly down to the lowest at the last.

    Attributes:
        steps: of the whole training, the warm-up's included.
        warmup_steps: below `steps`.
    """

    steps: int
    warmup_steps: int


@dataclass(frozen=True)
class Optimisation:
    """The recipe's part that the loop itself uses; rates are final, not scaled.

    Attributes:
        linear: the rate follows it; None: a cosine over `epochs`, of which `warmup_epochs` warm up.
    """

    epochs: int
    cooldown_epochs: int
    learning_rate: float
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_epochs: int
    weight_decay: float
    clip_norm: float | None
    ema_decay: float | None
    linear: LinearSchedule | None = None

    @property
    def total_epochs(self) -> int:
        """Epochs with the cool-down's."""
        return self.epochs + self.cooldown_epochs


class Learner:
    """A model and all that changes it.

    Args:
        model: on the CPU, in its starting weights.
        optimisation: schedule and optimiser settings.
        machine: sharding, compile, channels_last.
        processes: that share the training.
        device: where to train.
        precision: of autocast.

    Attributes:
        parallel: the model as the processes share it.
        averaged: its averaged weights, None where the recipe has none.
        scaler: of losses in float16; does nothing in other precisions.
    """

    def __init__(
        self, model: nn.Module, optimisation: Optimisation, machine: dict[str, Any], processes: Processes,
        device: torch.device, precision: torch.dtype,
    ) -> None:  # fmt: skip
        layout = torch.channels_last if machine["channels_last"] else torch.preserve_format
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.parallel = ParallelModel(model, processes, sharding=machine["sharding"], compiled=machine["compile"])
        self._average = self.parallel.average(optimisation.ema_decay) if optimisation.ema_decay else None
        self._processes = processes
        self._clip_norm = optimisation.clip_norm
        self._optimizer = create_optimizer_v2(
            self.parallel.model, opt="adamw", lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
        )
        self._scheduler = _scheduler(self._optimizer, optimisation)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    @property
    def averaged(self) -> nn.Module | None:
        """The averaged model."""
        return self._average.module if self._average else None

    @property
    def clips(self) -> bool:
        """Whether the recipe clips gradients."""
        return self._clip_norm is not None

    @property
    def learning_rate(self) -> float:
        """Of this epoch, or of this step where the rate changes with each."""
        return float(self._optimizer.param_groups[0]["lr"])

    def begin_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rate and training mode."""
        self._scheduler.step(epoch)
        self.parallel.model.train()

    def begin_step(self, number: int) -> None:
        """Sets the learning rate of step `number`, from 0, where it changes with each."""
        self._scheduler.step_update(number)  # nothing, for a schedule of epochs

    def forget_gradients(self) -> None:
        """Before a step's first backward pass."""
        self._optimizer.zero_grad(set_to_none=True)

    def apply_gradients(self, number: int) -> torch.Tensor | None:
        """Takes optimiser step `number`, from 1; returns the gradients' norm before clipping where the recipe clips."""
        norm = None
        if self._clip_norm is not None:
            self.scaler.unscale_(self._optimizer)
            norm = self.parallel.clip(self._clip_norm)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        if self._average is not None:
            self._average.update(self.parallel.model, step=number)
        return norm

    def weights_are_finite(self) -> bool:
        """Whether every weight is a number; looked at before weights are saved, since a finite loss can have infinite gradients."""
        own = [p.to_local() if isinstance(p, DTensor) else p for p in self.parallel.model.parameters()]
        return not self._processes.any(not torch.stack([torch.isfinite(p.detach()).all() for p in own]).all())

    def whole(self) -> tuple[nn.Module, nn.Module | None]:
        """The model and its average with all their weights; every process asks, whole in the main one."""
        average = self.parallel.whole(self.averaged) if self.averaged else None
        return self.parallel.whole(self.parallel.model), average

    def states(self) -> dict[str, Any]:
        """All that a resumed training needs; every process asks, the main one keeps it."""
        model, optimizer = self.parallel.states(self._optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "averaged": whole_state(self.averaged) if self.averaged else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_states(self, states: dict[str, Any]) -> None:
        """Takes over what `states` gave. The settings of the optimiser stay this recipe's; only what it has learnt comes."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        self.parallel.load_states(self._optimizer, states["model"], states["optimizer"])
        for group, kept in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(kept)
        if states["scaler"]:
            self.scaler.load_state_dict(states["scaler"])
        if self._average is not None:
            # a recipe that began to average after this checkpoint averages from its weights on
            load_whole_state(self._average.module, states["averaged"] or states["model"])


def _scheduler(optimizer: torch.optim.Optimizer, optimisation: Optimisation) -> Scheduler:
    linear = optimisation.linear
    if linear is None:
        return CosineLRScheduler(
            optimizer,
            t_initial=optimisation.epochs,
            lr_min=optimisation.min_learning_rate,
            warmup_t=optimisation.warmup_epochs,
            warmup_lr_init=optimisation.warmup_learning_rate,
            cycle_limit=1,
        )
    return PolyLRScheduler(
        optimizer,
        t_initial=max(linear.steps - linear.warmup_steps - 1, 1),  # the last step has the lowest rate
        power=1.0,
        lr_min=optimisation.min_learning_rate,
        warmup_t=linear.warmup_steps,
        warmup_lr_init=optimisation.warmup_learning_rate,
        warmup_prefix=True,  # the way down begins at the highest rate, where the warm-up ends
        t_in_epochs=False,
        cycle_limit=1,
    )
