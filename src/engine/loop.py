"""The one training loop: micro-batches to optimiser steps, steps to epochs, in one process or several.

Stages bring batches, a loss and measurements. A resumed training equals an unbroken one: batches, augmentation, mixing and
stochastic depth depend on (seed, epoch, step, micro-batch) alone, and the checkpoint holds the rest. One process with four
micro-batches a step equals four processes with one each, but for the order in which gradients are added.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.seeds import derived_seed
from .checkpoints import Checkpoints, Progress
from .device import autocast
from .failures import TrainingError, explain_non_finite, explaining_memory
from .meters import Meters, StepLosses
from .optimisation import Learner, Optimisation
from .processes import ALONE, Processes
from .reporting import Reporter
from .stopping import Stop

DEADLINE_MARGIN_S = 2.0


class Batch(Protocol):
    """What a loader yields: one micro-batch."""

    @property
    def images_count(self) -> int:
        """Photographs in it."""

    @property
    def skipped(self) -> int:
        """Photographs that could not be decoded."""

    @property
    def index(self) -> int:
        """Its number among those of its step, over all processes."""

    @property
    def sample_ids(self) -> np.ndarray[Any, Any]:
        """Of its photographs, uint64 (batch,)."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""


def hexadecimal(sample_ids: np.ndarray[Any, Any]) -> list[str]:
    """Sample ids as the label store prints them."""
    return [f"{int(identifier):016x}" for identifier in sample_ids]


@dataclass(frozen=True)
class Task:
    """What a stage brings.

    Attributes:
        batches: (epoch, first step) -> the epoch's steps from there on, each the list of this process's micro-batches.
        steps_per_epoch: optimiser steps of an epoch.
        loss: (model, micro-batch on the device, epoch, step) -> the loss and its parts, all scalar tensors; the model may be
            wrapped and has no attributes but those of a Module.
        parts: names of the loss's parts, in any order; a process may have no photograph of a step and must know them.
        counters: names of parts that are counts and add up; all others are means over the micro-batch.
        validate: (model, look) -> measurements, logged with the epoch; it calls `look` before each batch, equally often in every
            process, which leaves where time is up. None: never.
        validate_every_epochs: 0: never.
        describe: sample ids -> words for the user, paths where the stage has them.
    """

    batches: Callable[[int, int], Iterable[Sequence[Batch]]]
    steps_per_epoch: int
    loss: Callable[[nn.Module, Any, int, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
    parts: tuple[str, ...]
    counters: tuple[str, ...] = ("unlabeled",)
    validate: Callable[[nn.Module, Callable[[], None]], dict[str, float]] | None = None
    validate_every_epochs: int = 0
    describe: Callable[[np.ndarray[Any, Any]], list[str]] = hexadecimal


@dataclass(frozen=True)
class FitResult:
    """A training at its end, or at the end of one of its legs.

    Attributes:
        epochs: done so far.
        finished: whether it was the last.
        images, skipped: photographs of all epochs so far.
        changed: settings that a resumption changed.
    """

    model: nn.Module
    averaged: nn.Module | None
    epochs: int
    finished: bool
    images: int
    skipped: int
    changed: list[str]


def fit(
    model: nn.Module, task: Task, optimisation: Optimisation, folder: Path, *,
    digest: str, settings: dict[str, Any], seed: int, device: torch.device, precision: torch.dtype, machine: dict[str, Any],
    reporter: Reporter, processes: Processes = ALONE, stop: Stop | None = None, until_epoch: int | None = None,
    allow_changed: bool = False, check_owner: Callable[[], None] = lambda: None, micro_batch: int | None = None,
) -> FitResult:  # fmt: skip
    """Trains a model, or continues a training that was interrupted.

    Args:
        model: on the CPU, in its starting weights.
        task: batches and loss.
        optimisation: schedule and optimiser settings.
        folder: where checkpoints lie.
        digest: of the settings; a checkpoint of another one is refused.
        settings: what decides the numbers, as JSON; a checkpoint keeps them, so that differences can be named.
        seed: of the run.
        device: where to train.
        precision: of autocast.
        machine: sharding, compile, channels_last, checkpoint_seconds, log_every_steps.
        reporter: takes the metrics.
        processes: that share the training, each calling this.
        stop: says when to stop early.
        until_epoch: how many epochs shall be done at the end of this leg, counted from the training's first; None: all.
        allow_changed: whether to continue a training that other settings began.
        check_owner: called before anything is written; raises where another job has taken the folder over.
        micro_batch: photographs of a forward pass, which batch norms and mixing partners see: a resumption with others says so.

    Raises:
        ConfigError: settings that train nothing.
        CheckpointError: no checkpoint can be continued from.
        TrainingError: the loss is not finite, no photograph can be read, or memory does not suffice.
        StoppedError: told to stop; the state is saved.
    """
    _check_something_is_trained(task, optimisation)
    with explaining_memory(machine):
        learner = Learner(model, optimisation, machine, processes, device, precision)
        checkpoints = Checkpoints(
            folder, digest, settings, processes, {} if micro_batch is None else {"micro_batch": micro_batch}
        )
        training = _Training(
            task, learner, checkpoints, reporter, processes, stop or Stop(), seed, device, precision, machine,
            check_owner,
        )  # fmt: skip
        # until one has been written: weights, their average and AdamW's two moments at 50 MB/s
        checkpoints.write_s = sum(4 * 4 * weight.numel() for weight in model.parameters()) / 50e6
        training.resume(allow_changed)
        last = optimisation.total_epochs
        while training.progress.epoch < min(last, last if until_epoch is None else until_epoch):
            training.run_epoch()
    progress = training.progress
    return FitResult(
        *learner.whole(), progress.epoch, progress.epoch >= last, progress.images,
        progress.skipped, progress.changed,
    )  # fmt: skip


def _check_something_is_trained(task: Task, optimisation: Optimisation) -> None:
    for name, value in {
        "epochs": optimisation.epochs,
        "learning_rate": optimisation.learning_rate,
        "steps per epoch": task.steps_per_epoch,
    }.items():
        if not value > 0:
            raise ConfigError(f"{name} {value:g}: nothing would be trained. Give a number above 0.")


@dataclass
class _Training:
    """A training under way."""

    task: Task
    learner: Learner
    checkpoints: Checkpoints
    reporter: Reporter
    processes: Processes
    stop: Stop
    seed: int
    device: torch.device
    precision: torch.dtype
    machine: dict[str, Any]
    check_owner: Callable[[], None]

    def __post_init__(self) -> None:
        self.progress = Progress()
        self._meters = Meters(self.task.counters)
        self._unread: StepLosses | None = None
        self._saved_at = self._step_began = self._counted_until = time.monotonic()
        self._step_s = 0.0
        self._parts = ("loss", *self.task.parts)

    def resume(self, allow_changed: bool) -> None:
        """Continues from the newest checkpoint, if there is one."""
        found = self.checkpoints.read(self.learner.parallel.model.state_dict(), allow_changed)
        if found is not None:
            self.progress, states = found
            self.learner.load_states(states)
        self.reporter.resume(self.progress.epoch, self.progress.step)

    def run_epoch(self) -> None:
        """Does what is left of the epoch, measures it, and saves."""
        epoch, first_step = self.progress.epoch, self.progress.step
        self.learner.begin_epoch(epoch)
        if first_step:
            # where a validation was interrupted no step is left, and the epoch's line tells the rate of the last one
            self.learner.begin_step(epoch * self.task.steps_per_epoch + first_step - 1)
        self._meters = Meters(self.task.counters, self.progress.meters)
        self._counted_until = time.monotonic()
        if first_step < self.task.steps_per_epoch:  # else it was cut off while validating
            with contextlib.closing(_closable(self.task.batches(epoch, first_step))) as steps:
                for micro_batches in steps:
                    self._take_step(micro_batches)
        line = {
            "epoch": epoch,
            "steps": self.task.steps_per_epoch,
            "learning_rate": self.learner.learning_rate,
            **self._meters.epoch_means(),
        }
        if not line.get("images"):
            raise TrainingError(
                f"none of the photographs of epoch {epoch} can be read, so nothing was trained. Mend them (the log names each), or "
                "the data set's place."
            )
        every = self.task.validate_every_epochs
        if self.task.validate and every and (epoch + 1) % every == 0:
            self._save()  # a validation may take longer than a scheduler waits
            line |= self.task.validate(self.learner.averaged or self.learner.parallel.model, self._leave_in_time)
        self._check_finite(self._unread)
        self.check_owner()
        self.reporter.epoch(line)
        self.progress = replace(
            self.progress, epoch=epoch + 1, step=0, meters=None,
            images=self.progress.images + int(line.get("images", 0)),
            skipped=self.progress.skipped + int(line.get("skipped", 0)),
        )  # fmt: skip
        self._save()

    def _take_step(self, micro_batches: Sequence[Batch]) -> None:
        images, skipped = self._agree_on_step(micro_batches)
        epoch, step = self.progress.epoch, self.progress.step
        self.stop.unsaved = True
        losses: dict[str, torch.Tensor] = {}
        norm = None
        number = epoch * self.task.steps_per_epoch + step
        self.learner.begin_step(number)
        if images:
            losses, own = self._accumulate_gradients(micro_batches, images)
            norm = self.learner.apply_gradients(number + 1)
        now = time.monotonic()
        self._meters.add(losses, norm, {"images": images, "skipped": skipped, "seconds": now - self._counted_until})
        self._counted_until = now
        self.progress = replace(self.progress, step=step + 1)
        if losses:
            means = {name: value for name, value in losses.items() if name not in self.task.counters}
            self._look_at(StepLosses.fetch(epoch, step, means, own))
        if (step + 1) % self.machine["log_every_steps"] == 0:
            values, count = self._meters.read_window()
            self.check_owner()
            self.reporter.step(epoch, step, {"learning_rate": self.learner.learning_rate, **values}, count)

    def _agree_on_step(self, micro_batches: Sequence[Batch]) -> tuple[int, int]:
        """Photographs of the step over all processes, counted and skipped; saves and ends before it where any process must."""
        now = time.monotonic()
        # the slowest lately: a first step is slow by compiling and must not be waited for again for ever
        self._step_s, self._step_began = max(now - self._step_began, 0.9 * self._step_s), now
        reserve_s = 2 * (self.checkpoints.write_s + self._step_s) + DEADLINE_MARGIN_S
        is_time = self.stop.unsaved and now - self._saved_at > self.machine["checkpoint_seconds"]
        images, skipped, save, stop = self.processes.sum(
            torch.tensor(
                [
                    sum(batch.images_count for batch in micro_batches), sum(batch.skipped for batch in micro_batches),
                    is_time and self.processes.is_main, self.stop.requested(reserve_s),
                ],
                dtype=torch.int64,
            )
        ).tolist()  # fmt: skip
        if self.stop.unsaved and (save or stop):
            self._save()
        if stop:
            where = f"epoch {self.progress.epoch}, step {self.progress.step}: the state is saved"
            raise self.stop.explained(where)
        return images, skipped

    def _leave_in_time(self) -> None:
        """Between two batches of a validation: ends where any process must; the training is saved, the validation is repeated."""
        now = time.monotonic()
        self._step_s, self._step_began = max(now - self._step_began, 0.9 * self._step_s), now
        if self.processes.any(self.stop.requested(2 * self._step_s + DEADLINE_MARGIN_S)):
            raise self.stop.explained(f"epoch {self.progress.epoch}, while validating: the state is saved")

    def _accumulate_gradients(
        self, micro_batches: Sequence[Batch], images: int
    ) -> tuple[dict[str, torch.Tensor], list[tuple[np.ndarray[Any, Any], torch.Tensor]]]:
        """Forward and backward of a step.

        Returns:
            its losses as means over the photographs of all processes, and of each micro-batch here the photographs and the loss.
        """
        epoch, step = self.progress.epoch, self.progress.step
        forward = self.learner.parallel.forward
        self.learner.forget_gradients()
        values: dict[str, torch.Tensor] = {}
        own: list[tuple[np.ndarray[Any, Any], torch.Tensor]] = []
        for batch in micro_batches:
            # stochastic depth, dropout, erasing noise
            torch.manual_seed(derived_seed("step", self.seed, epoch, step, batch.index))
            share = batch.images_count / images
            with contextlib.nullcontext() if batch is micro_batches[-1] else self.learner.parallel.accumulating():
                if not batch.images_count:
                    self.learner.parallel.idle()
                    continue
                with autocast(self.device, self.precision):
                    loss, parts = self.task.loss(forward, batch.to(self.device), epoch, step)
                # the processes' gradients are averaged, so each counts as many times as there are processes
                self.learner.scaler.scale(loss * (share * self.processes.count)).backward()  # type: ignore[no-untyped-call]
            own.append((batch.sample_ids, loss.detach()))
            for name, value in {"loss": loss, **parts}.items():
                amount = value.detach().float() * (1.0 if name in self.task.counters else share)
                values[name] = values[name] + amount if name in values else amount
        nothing = torch.zeros((), device=self.device)
        together = self.processes.sum(torch.stack([values.get(name, nothing) for name in self._parts]))
        return dict(zip(self._parts, together.unbind(), strict=True)), own

    def _look_at(self, losses: StepLosses) -> None:
        """Looks whether losses are finite: on a GPU one step late, so that it need not wait for the CPU."""
        self._check_finite(self._unread if losses.copied else losses)
        self._unread = losses

    def _check_finite(self, losses: StepLosses | None) -> None:
        if losses is not None and not losses.is_finite():
            raise self._failure(losses, losses.read())

    def _failure(self, losses: StepLosses, values: dict[str, float]) -> TrainingError:
        """The error, of the process whose photographs they were; every process comes here, the others wait for its end."""
        suspects = losses.suspects()
        has_some = torch.zeros(self.processes.count, dtype=torch.int64)
        has_some[self.processes.rank] = len(suspects)
        if self.processes.rank != int(self.processes.sum(has_some).bool().int().argmax()):
            self.processes.barrier()
        return explain_non_finite(
            epoch=losses.epoch,
            step=losses.step,
            values=values,
            learning_rate=self.learner.learning_rate,
            checkpoint=self.checkpoints.newest(),
            sample_paths=self.task.describe(np.concatenate(suspects or losses.sample_ids or [np.empty(0, np.uint64)])),
            clipped=self.learner.clips,
            precision=self.precision,
        )

    def _save(self) -> None:
        """Writes a checkpoint of what has been done, if it is sound."""
        with self.stop.saving:
            self._check_finite(self._unread)
            if self._unread and not self.learner.weights_are_finite():
                raise self._failure(self._unread, {"weights": float("nan")})
            progress = replace(self.progress, meters=self._meters.state() if self.progress.step else None)
            states = self.learner.states()
            self.check_owner()
            if self.processes.is_main:
                number = self.progress.epoch * self.task.steps_per_epoch + self.progress.step
                self.checkpoints.write(number, progress, states)
            self.stop.unsaved = False
        self._saved_at = self._step_began = time.monotonic()


def _closable(steps: Iterable[Sequence[Batch]]) -> Any:
    """The steps as a generator, which `closing` ends at once together with its loader's processes."""
    yield from steps
