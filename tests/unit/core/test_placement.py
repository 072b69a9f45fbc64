"""Nodes and processes of trainings, and the legs that a partition's limit cuts them into."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tokenlabel.core.cost import MARGIN, epochs_within, limit_minutes
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.placement import nodes_of, processes_of
from tokenlabel.core.plan_jobs import JobList, legs_of, run_seconds
from tokenlabel.core.planned import Run
from tokenlabel.core.study import Study

Raw = dict[str, Any]


@pytest.fixture
def raw(raw_config: Raw) -> Raw:
    """LV-ViT-L's chain alone: 288 px, then 448 and 512."""
    raw_config["select"] = {"annotators": [], "experiments": ["main"], "published": "all"}
    raw_config["machine"].update(processes=8, micro_batch=16)
    return raw_config


def runs_of(study: Study, model: str) -> dict[int, Run]:
    return {
        run.spec["image_px"]: run
        for run in study.selected_runs
        for run in run.chain
        if run.name.startswith(f"{model}-")
    }


def test_nodes_are_of_the_model_at_its_resolution_then_of_the_model_then_of_all(raw: Raw) -> None:
    raw["machine"].update(nodes=2, nodes_of={"lvvit_l": 1, "lvvit_l@448": 4})
    study = Study.plan(raw)
    machine = study.config.machine
    large = runs_of(study, "lvvit_l")
    assert {px: nodes_of(machine, run) for px, run in large.items()} == {288: 1, 448: 4, 512: 1}
    assert processes_of(machine, large[448]) == 32
    assert {nodes_of(machine, run) for run in runs_of(study, "lvvit_s").values()} == {2}


def test_more_gpus_take_less_time(raw: Raw) -> None:
    large = runs_of(Study.plan(raw), "lvvit_l")[448]
    one = Study.plan(raw)
    raw["machine"]["nodes_of"] = {"lvvit_l@448": 4}
    four = Study.plan(raw)
    start_s = raw["plan"]["job_start_s"]
    assert run_seconds(one, large) - start_s == pytest.approx(4 * (run_seconds(four, large) - start_s))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes_of": {"lvvit_xl@448": 4}}, r"machine\.nodes_of.*lvvit_xl"),
        (
            {"nodes_of": {"lvvit_l@448": 4}, "micro_batch": 64},
            r"32 processes \(machine\.processes on each of 4 nodes\).*machine\.micro_batch 16",
        ),
        ({"nodes": 0}, r"machine\.nodes: 0"),
        ({"max_job_hours": 0}, r"machine\.max_job_hours: 0"),
    ],
    ids=["no model", "batch", "no node", "no hour"],
)
def test_what_cannot_work_is_one_line_when_it_is_planned(raw: Raw, changes: Raw, said: str) -> None:
    raw["machine"].update(changes)
    with pytest.raises(ConfigError, match=said):
        Study.plan(raw)


def test_a_plan_for_fewer_gpus_than_the_nodes_have_is_refused(raw: Raw) -> None:
    raw["machine"]["nodes_of"] = {"lvvit_l@448": 4}
    study = Study.plan(raw)
    with pytest.raises(ConfigError, match=r"plan\.gpus: 8 is below .*lvvit_l.* 32"):
        JobList(study).add_run(runs_of(study, "lvvit_l")[448], 0)


@pytest.mark.parametrize("hours", [1.0, 24.0, 100.0])
def test_each_leg_fits_into_the_limit_although_it_takes_twice_the_estimate(raw: Raw, hours: float) -> None:
    raw["machine"]["max_job_hours"] = hours
    study = Study.plan(raw)
    for run in study.selected_runs:
        legs = legs_of(study, run)
        ends = [run.leg_end(leg, legs) for leg in range(legs + 1)]
        assert ends[0] == 0
        assert ends[-1] == run.epochs
        longest = max(after - before for before, after in itertools.pairwise(ends))
        assert longest >= 1
        if longest > 1:  # one epoch may take longer than a job: then it hands over inside it
            assert MARGIN * run_seconds(study, run, longest) <= hours * 3600
        assert limit_minutes(run_seconds(study, run, longest), 3, hours) <= hours * 60


def test_epochs_of_a_leg_set_by_hand_win(raw: Raw) -> None:
    raw["machine"].update(max_job_hours=1, leg_epochs=100)
    study = Study.plan(raw)
    run = next(run for run in study.selected_runs if run.epochs == 310)
    assert legs_of(study, run) == 4
    assert [run.leg_end(leg, 4) for leg in (1, 2, 3, 4)] == [78, 155, 233, 310]


def test_a_limit_below_one_epoch_is_one_epoch_a_leg() -> None:
    assert epochs_within(0.01, start_s=30, epoch_s=1000) == 1
    assert limit_minutes(10, 3, 0.01) == 1
