"""What a recipe comes to on a machine: its real learning rates, its steps and micro-batches; refuses what cannot work.

Called by the plan at parse time and by `tokenlabel train --explain`; training jobs see the batch that they really have.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import Machine, Recipe
from .errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A recipe in numbers.

    Attributes:
        batch_size: photographs of a step, over all processes; no more than there are.
        micro_batches: of a step, over all processes.
        steps_per_epoch: optimiser steps.
        learning_rate: the highest, after scaling by the batch.
    """

    batch_size: int
    micro_batches: int
    steps_per_epoch: int
    learning_rate: float

    @classmethod
    def of(cls, recipe: Recipe, machine: Machine, train_images: int) -> Schedule:
        """The schedule of a recipe with so many training photographs."""
        batch_size = min(recipe.batch_size, train_images)
        return cls(
            batch_size=batch_size,
            micro_batches=-(-batch_size // machine.micro_batch),
            steps_per_epoch=train_images // batch_size,
            learning_rate=scaled_rate(recipe, batch_size),
        )


def scaled_rate(recipe: Recipe, batch_size: int) -> float:
    """The highest learning rate of steps with so many photographs: linear scaling (section 4.1)."""
    return recipe.learning_rate * (batch_size / recipe.learning_rate_batch if recipe.learning_rate_batch else 1.0)


def with_batch(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe with another batch; a rate that follows it takes floor and first rate along, for it never ends above itself."""
    highest = scaled_rate(recipe, batch_size)
    return recipe.model_copy(
        update={
            "batch_size": batch_size,
            "min_learning_rate": min(recipe.min_learning_rate, highest),
            "warmup_learning_rate": min(recipe.warmup_learning_rate, highest),
        }
    )


def check_schedule(recipe: Recipe, machine: Machine, where: str) -> None:
    """Refuses a batch that the processes cannot share and a schedule that would rise where it should fall.

    Args:
        recipe: as a run has it, caps included.
        machine: micro_batch and processes.
        where: the row or run, for the error.

    Raises:
        ConfigError: either of them, with the nearest values that work.
    """
    schedule = Schedule.of(recipe, machine, recipe.batch_size)
    count, processes, micro = schedule.micro_batches, machine.processes, machine.micro_batch
    if count % processes:
        fewer, more = count // processes * processes, (count // processes + 1) * processes
        sizes = " or ".join(str(micros * micro) for micros in (fewer, more) if micros)
        smaller = _shared_micro_batch(schedule.batch_size, more, processes)
        remedy = f"machine.micro_batch {smaller}, batch_size" if smaller else "batch_size"
        shared = max(divisor for divisor in range(1, processes) if count % divisor == 0)
        raise ConfigError(
            f"{where}: batch_size {schedule.batch_size} in micro-batches of {micro} (machine.micro_batch) makes {count} a step, "
            f"which {processes} processes (machine.processes) cannot share evenly. Nearest that work: {remedy} {sizes}, or "
            f"machine.processes {shared}."
        )
    for key, rate in {
        "min_learning_rate": recipe.min_learning_rate,
        "warmup_learning_rate": recipe.warmup_learning_rate if recipe.warmup_epochs else 0.0,
    }.items():
        if rate > schedule.learning_rate:
            scaled = f" ({recipe.learning_rate:g} x batch_size {schedule.batch_size} / {recipe.learning_rate_batch})"
            raise ConfigError(
                f"{where}: {key} {rate:g} is above the learning rate {schedule.learning_rate:g}"
                f"{scaled if recipe.learning_rate_batch else ''}. Lower it, or raise learning_rate or batch_size."
            )


def _shared_micro_batch(batch_size: int, least: int, processes: int) -> int | None:
    """The largest micro-batch of which at least so many make a step and processes share them evenly."""
    for count in range(least, batch_size + 1, processes):
        size = -(-batch_size // count)
        if -(-batch_size // size) == count:
            return size
    return None
