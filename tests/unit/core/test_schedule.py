"""Wall time: chains, shares of GPUs, jobs that hold several, and never below what no schedule can beat."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlabel.core.schedule import Task, least_seconds, longest_chain, schedule_seconds


def tasks(**entries: tuple[float, int, str]) -> dict[str, Task]:
    return {name: Task(seconds, gpus, after.split()) for name, (seconds, gpus, after) in entries.items()}


def test_a_chain_is_as_long_on_any_number_of_gpus() -> None:
    chain = tasks(labels=(2, 1, ""), train=(10, 1, "labels"), tune=(3, 1, "train"), look=(0, 0, "tune"))
    for gpus in (1, 8):
        assert least_seconds(chain, gpus) == schedule_seconds(chain, gpus) == 15
    assert longest_chain(chain) == ["labels", "train", "tune", "look"]


def test_ten_equal_jobs_on_eight_gpus_take_two_rounds_where_the_bound_says_less() -> None:
    ten = {f"run{number}": Task(10, 1, ()) for number in range(10)}
    assert least_seconds(ten, 8) == pytest.approx(12.5)
    assert schedule_seconds(ten, 8) == 20


def test_the_job_with_the_longest_way_to_go_starts_first() -> None:
    jobs = tasks(short=(4, 1, ""), long=(4, 1, ""), after=(6, 1, "long"))
    assert schedule_seconds(jobs, 1) == 14
    assert schedule_seconds(jobs, 2) == 10


def test_a_job_of_four_gpus_waits_for_four_while_smaller_ones_run() -> None:
    jobs = tasks(big=(10, 4, "small"), small=(1, 1, ""), other=(5, 1, ""))
    assert schedule_seconds(jobs, 4) == 15  # until `other` gives its one back
    assert schedule_seconds(jobs, 5) == 11


def test_nothing_takes_no_time() -> None:
    assert least_seconds({}, 8) == schedule_seconds({}, 8) == 0
    assert longest_chain({}) == []
    assert schedule_seconds(tasks(alone=(2, 1, "finished before")), 1) == 2


@settings(deadline=None)  # milliseconds, but machines are busy
@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 2), st.sets(st.integers(0, 14), max_size=3)), max_size=15),
    st.integers(2, 5),
)
def test_a_schedule_is_between_the_bound_and_one_after_another(
    drawn: list[tuple[float, int, set[int]]], gpus: int
) -> None:
    jobs = {
        str(number): Task(seconds, held, [str(before) for before in after if before < number])
        for number, (seconds, held, after) in enumerate(drawn)
    }
    made = schedule_seconds(jobs, gpus)
    assert least_seconds(jobs, gpus) <= made + 1e-6
    assert made <= sum(task.seconds for task in jobs.values()) + 1e-6
