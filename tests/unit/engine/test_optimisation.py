"""The schedules: the linear one's rates by hand, the same after a resumption; the cosine does not notice steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import machine_settings
from tokenlabel.engine.optimisation import Learner, LinearSchedule, Optimisation
from tokenlabel.engine.processes import ALONE

from .test_loop import EPOCHS, STEPS, KilledError, killing, logged, require_equal, train
from .test_loop import OPTIMISATION as COSINE

LINEAR = dataclasses.replace(
    COSINE, warmup_epochs=0, linear=LinearSchedule(STEPS * EPOCHS, warmup_steps=4), learning_rate=1e-2,
    min_learning_rate=1e-3, warmup_learning_rate=1e-4,
)  # fmt: skip


def learner(optimisation: Optimisation, folder: Path) -> Learner:
    return Learner(
        nn.Linear(2, 2), optimisation, machine_settings(folder), ALONE, torch.device("cpu"), torch.float32
    )  # fmt: skip


def rates(optimisation: Optimisation, folder: Path, steps: range) -> list[float]:
    model = learner(optimisation, folder)
    found = []
    for number in steps:
        if number % STEPS == 0 or number == steps.start:
            model.begin_epoch(number // STEPS)
        model.begin_step(number)
        found.append(model.learning_rate)
    return found


def test_the_linear_rate_warms_up_and_falls_to_the_lowest_at_the_last_step(tmp_path: Path) -> None:
    expected = [1e-4 + step * (1e-2 - 1e-4) / 4 for step in range(4)]
    expected += [1e-2 - step * (1e-2 - 1e-3) / 7 for step in range(8)]
    assert rates(LINEAR, tmp_path, range(12)) == pytest.approx(expected)
    assert expected[-1] == pytest.approx(1e-3)


def test_the_paper_recipes_rates(tmp_path: Path) -> None:
    paper = dataclasses.replace(
        LINEAR, learning_rate=6e-5, min_learning_rate=5e-6, warmup_learning_rate=0.0, linear=LinearSchedule(160_000, 1500)
    )  # fmt: skip
    model = learner(paper, tmp_path)
    found = []
    for step in (0, 750, 1500, 80_750, 159_999):
        model.begin_step(step)
        found.append(model.learning_rate)
    assert found == pytest.approx([0.0, 3e-5, 6e-5, 3.25e-5, 5e-6], rel=1e-4)


@pytest.mark.parametrize("start", [1, 4, 6, 11])
def test_a_rate_depends_on_the_number_of_its_step_alone(tmp_path: Path, start: int) -> None:
    assert rates(LINEAR, tmp_path, range(start, 12)) == rates(LINEAR, tmp_path, range(12))[start:]


def test_the_cosine_does_not_notice_steps(tmp_path: Path) -> None:
    found = rates(COSINE, tmp_path, range(12))
    assert [len(set(found[start : start + STEPS])) for start in range(0, 12, STEPS)] == [1, 1, 1]
    assert found[::STEPS] == pytest.approx([1e-4, 7.525e-3, 2.575e-3])


def test_a_training_by_the_linear_schedule_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", optimisation=LINEAR)
    steps = [line["learning_rate"] for line in logged(tmp_path / "whole")]
    assert len(set(steps)) == len(steps)  # it moves within an epoch
    assert steps[-1] == pytest.approx(1e-3)
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        train(folder, killing(lambda epoch, step, index: (epoch, step) == (1, 1)), LINEAR)
    resumed: list[Any] = []
    require_equal(train(folder, killing(lambda *place: bool(resumed.append(place))), LINEAR), whole)
    assert resumed[0] == (1, 1, 0)
    assert logged(folder) == logged(tmp_path / "whole")
