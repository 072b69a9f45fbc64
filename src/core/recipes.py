"""What a recipe comes to on a machine: its real learning rates, its steps and micro-batches; refuses what cannot work.

Called by the plan at parse time and by `tokenlabel train --explain`; a training job checks the batch that it really has, which a
small data set makes smaller, by the same `check_shares`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic

from .config import Machine, Recipe, describe_problems
from .errors import ConfigError

AnyRecipe = TypeVar("AnyRecipe", bound=pydantic.BaseModel)


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


def recipe_of(spec: Mapping[str, Any], kind: type[AnyRecipe], where: str = "spec.json") -> AnyRecipe:
    """The recipe of a spec, of the stage's kind.

    Args:
        spec: of a training; the workflow's own was validated when it was planned, one by hand was not.
        kind: Recipe, or another stage's.
        where: the file, for the error.

    Raises:
        ConfigError: a value that is not legal.
    """
    try:
        # strictly: augmentation and loss read the spec itself, in which "24" would stay a string
        return kind.model_validate_json(json.dumps(spec["recipe"]), strict=True)
    except pydantic.ValidationError as error:
        problems = describe_problems(error, "recipe").replace("configuration key ", "")
        raise ConfigError(f"{where}: {problems}. Mend it, or let snakemake write it.") from None


def check_schedule(recipe: Recipe, machine: Machine, where: str, nodes: int = 1) -> None:
    """Refuses a batch that the processes cannot share and a schedule that would rise where it should fall.

    Args:
        recipe: as a run has it, caps included.
        machine: micro_batch and processes.
        where: the row or run, for the error.
        nodes: with machine.processes each.

    Raises:
        ConfigError: either of them, with the nearest values that work.
    """
    schedule = Schedule.of(recipe, machine, recipe.batch_size)
    check_shares(schedule.batch_size, machine.micro_batch, machine.processes * nodes, where, nodes)
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


def check_shares(
    batch_size: int,
    micro_batch: int,
    processes: int,
    where: str = "",
    nodes: int = 1,
    key: str = "machine.micro_batch",
) -> None:
    """Refuses a step whose micro-batches the processes cannot share evenly, for each exchanges gradients as often.

    Args:
        batch_size: photographs of a step, over all processes.
        micro_batch: photographs of a forward pass.
        processes: of the training.
        where: the row or run, for the error; may be empty.
        nodes: that the processes run on, for the error.
        key: that micro_batch is from, for the error.

    Raises:
        ConfigError: with the nearest values that work.
    """

    def cut(size: int, micro: int) -> int:
        return -(-size // micro)

    count = cut(batch_size, micro_batch)
    if count % processes == 0:
        return
    even = {cut(batch_size, number) for number in range(processes, batch_size + 1, processes)}
    micro = _nearest(micro_batch, [size for size in even if cut(batch_size, size) % processes == 0])
    whole = micro_batch * processes
    sizes = _nearest(batch_size, [batch_size // whole * whole, (batch_size // whole + 1) * whole])
    numbers = _nearest(
        processes // nodes, [number for number in range(1, count // nodes + 1) if count % (number * nodes) == 0]
    )
    ways = [f"{key} {micro}"] * bool(micro) + [f"batch_size {sizes}"]
    ways += [f"machine.processes {numbers}"] * bool(numbers)
    place = f"{where}: " if where else ""
    on_nodes = f" on each of {nodes} nodes" if nodes > 1 else ""
    raise ConfigError(
        f"{place}batch_size {batch_size} in micro-batches of {micro_batch} ({key}) makes {count} a step, "
        f"which {processes} processes (machine.processes{on_nodes}) cannot share evenly. Nearest that fit: {'; or '.join(ways)}."
    )


def _nearest(value: int, legal: list[int]) -> str:
    """The nearest legal values below and above, in words; empty where there is none."""
    below = [number for number in legal if 0 < number < value]
    above = [number for number in legal if number > value]
    return " or ".join(str(number) for number in [*([max(below)] if below else []), *([min(above)] if above else [])])
