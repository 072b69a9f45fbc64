"""The one training loop: precision, accumulation, schedule, averaging, checkpoints, resume and metrics.

Stages bring a loader and a loss. A resumed run equals an unbroken one: batches, augmentation and stochastic depth depend
on (seed, epoch, step) alone. timm's optimiser, schedule and weight averaging are used as they are.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from ..core.errors import TokenLabelError
from ..core.files import write_text
from ..core.log import logger
from ..core.seeds import derived_seed
from .checkpoints import Progress, load_training_state, save_training_state
from .device import autocast

CHECKPOINT_SECONDS = 600.0  # within an epoch; at each epoch's end there is one anyway


class TrainingError(TokenLabelError):
    """A training that cannot go on."""


class InterruptedTrainingError(TokenLabelError):
    """A training that a signal stopped after it saved its state."""


class Batch(Protocol):
    """What a loader yields: one micro-batch."""

    @property
    def images_count(self) -> int:
        """Photographs in it."""

    @property
    def skipped(self) -> int:
        """Photographs that could not be decoded."""


@dataclass(frozen=True)
class Optimisation:
    """The recipe's part that the loop itself uses; rates are final, not scaled."""

    epochs: int
    cooldown_epochs: int
    learning_rate: float
    min_learning_rate: float
    warmup_learning_rate: float
    warmup_epochs: int
    weight_decay: float
    clip_norm: float | None
    ema_decay: float | None


@dataclass(frozen=True)
class Task:
    """What a stage brings.

    Attributes:
        batches: (epoch, first step) -> the epoch's steps from there on, each a list of micro-batches.
        steps_per_epoch: optimiser steps of an epoch.
        loss: (model, micro-batch, epoch, step) -> the loss and its parts, all scalar tensors; `unlabeled` among them is a
            count of photographs.
        validate: measures a model; logged with the epoch. None: never.
        validate_every_epochs: 0: never.
    """

    batches: Callable[[int, int], Iterable[list[Any]]]
    steps_per_epoch: int
    loss: Callable[[nn.Module, Any, int, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    validate_every_epochs: int = 0


@dataclass(frozen=True)
class FitResult:
    """A finished training."""

    model: nn.Module
    averaged: nn.Module | None
    images: int
    skipped: int


def fit(
    model: nn.Module,
    task: Task,
    optimisation: Optimisation,
    folder: Path,
    *,
    digest: str,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
) -> FitResult:
    """Trains a model, or continues a training that was interrupted.

    Args:
        model: on the CPU, in its starting weights.
        task: batches and loss.
        optimisation: schedule and optimiser settings.
        folder: where checkpoint.pt and metrics.jsonl lie.
        digest: of the spec and seed; a checkpoint of another one is refused.
        seed: of the run.
        device: where to train.
        precision: of autocast.

    Raises:
        TrainingError: the loss is not finite.
        InterruptedTrainingError: SIGTERM or SIGUSR1 arrived; the state is saved.
    """
    model.to(device)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
    )
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=optimisation.epochs,
        lr_min=optimisation.min_learning_rate,
        warmup_t=optimisation.warmup_epochs,
        warmup_lr_init=optimisation.warmup_learning_rate,
        cycle_limit=1,
    )
    averaged = None
    if optimisation.ema_decay:
        # decay 1 - 1/(1 + step) until it reaches the recipe's: a plain mean at first. Without it a short run's average would
        # still be mostly the random weights it began with (decay 0.99992 forgets them in 30,000 steps).
        averaged = ModelEmaV3(model, decay=optimisation.ema_decay, use_warmup=True, warmup_power=1.0)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    checkpoint = folder / "checkpoint.pt"
    metrics = MetricsFile(folder / "metrics.jsonl")

    def states() -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "averaged": averaged.module.state_dict() if averaged else None,
            "scaler": scaler.state_dict(),
        }

    progress = Progress(0, 0, {})
    if (resumed := load_training_state(checkpoint, digest)) is not None:
        progress, saved = resumed
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        if averaged is not None:
            averaged.module.load_state_dict(saved["averaged"])
        logger.info("resuming at epoch %d, step %d", progress.epoch, progress.step)
    metrics.keep_epochs_before(progress.epoch)

    last_epoch = optimisation.epochs + optimisation.cooldown_epochs
    with _stop_signals() as stop:
        for epoch in range(progress.epoch, last_epoch):
            scheduler.step(epoch)
            model.train()
            first_step = progress.step if epoch == progress.epoch else 0
            totals = _Totals(progress.totals if first_step else {})
            step = first_step
            saved_at = time.monotonic()
            for batches in task.batches(epoch, first_step):
                read = max(sum(batch.images_count for batch in batches), 1)
                micro_batches = [(batch, batch.images_count / read) for batch in batches]
                torch.manual_seed(derived_seed("step", seed, epoch, step))  # stochastic depth, dropout, erasing noise
                started = time.monotonic()
                _optimiser_step(
                    model, task, micro_batches, optimizer, scaler, optimisation.clip_norm, totals,
                    epoch=epoch, step=step, device=device, precision=precision,
                )  # fmt: skip
                if averaged is not None:
                    averaged.update(model, step=epoch * task.steps_per_epoch + step + 1)
                step += 1
                totals.add("seconds", time.monotonic() - started)
                if stop.requested or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save_training_state(checkpoint, digest, Progress(epoch, step, totals.sums), states())
                    saved_at = time.monotonic()
                if stop.requested:
                    raise InterruptedTrainingError(
                        f"{folder}: stopped by {stop.requested} at epoch {epoch}, step {step}; the state is saved. "
                        "Run the same command again to continue."
                    )
            line = {"epoch": epoch, "steps": step, "learning_rate": optimizer.param_groups[0]["lr"], **totals.means()}
            if task.validate and task.validate_every_epochs and (epoch + 1) % task.validate_every_epochs == 0:
                line |= task.validate(averaged.module if averaged else model)
            metrics.append(line)
            logger.info("epoch %s", " ".join(f"{k} {v:.4g}" for k, v in line.items()))
            progress = Progress(epoch + 1, 0, {})
            save_training_state(checkpoint, digest, progress, states())
    images, skipped = metrics.sum_of("images"), metrics.sum_of("skipped")
    return FitResult(model, averaged.module if averaged else None, int(images), int(skipped))


def _optimiser_step(
    model: nn.Module, task: Task, micro_batches: list[tuple[Any, float]], optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler, clip_norm: float | None, totals: _Totals, *,
    epoch: int, step: int, device: torch.device, precision: torch.dtype,
) -> None:  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    values: dict[str, float] = {}
    images = skipped = 0
    for batch, weight in micro_batches:
        images, skipped = images + batch.images_count, skipped + batch.skipped
        if batch.images_count == 0:
            continue
        with autocast(device, precision):
            loss, parts = task.loss(model, batch, epoch, step)
        scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss, **parts}.items():
            amount = float(value.detach())
            if name in _Totals.COUNTERS:
                totals.add(name, amount)
            else:
                values[name] = values.get(name, 0.0) + amount * weight
    if any(not math.isfinite(value) for value in values.values()):
        raise TrainingError(
            f"epoch {epoch}, step {step}: the loss is not finite ({values}). Lower learning_rate, set clip_norm, or use "
            "machine.precision float32; the checkpoint before this step is kept."
        )
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    for name, mean in values.items():
        totals.add_weighted(name, mean, images)
    totals.add("images", images)
    totals.add("skipped", skipped)


class _Totals:
    """Sums over an epoch; survives a resume inside it."""

    COUNTERS = ("images", "skipped", "unlabeled", "seconds")

    def __init__(self, sums: dict[str, float]) -> None:
        self.sums = dict(sums)

    def add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def add_weighted(self, name: str, value: float, weight: float) -> None:
        self.add(name, value * weight)

    def means(self) -> dict[str, float]:
        """Losses as means over photographs, counters as sums."""
        images = max(self.sums.get("images", 0.0), 1.0)
        return {name: value if name in self.COUNTERS else value / images for name, value in self.sums.items()}


class MetricsFile:
    """metrics.jsonl: one JSON line per finished epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, float]]:
        """All whole lines; one cut off by a kill is ignored."""
        found = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(text))
                except ValueError:
                    continue
        return found

    def keep_epochs_before(self, epoch: int) -> None:
        """Drops lines of epochs that will be run again."""
        kept = [line for line in self.lines() if line["epoch"] < epoch]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, float]) -> None:
        """Adds an epoch's line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sum_of(self, name: str) -> float:
        """Sum of one column over all epochs."""
        return sum(line.get(name, 0.0) for line in self.lines())


class _Stop:
    requested: str = ""


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turns SIGTERM and SIGUSR1 into a request that the loop answers after the step."""
    stop = _Stop()

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = signal.Signals(number).name

    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
