"""Samples of the fault campaign on trainings: few seeds of each, real processes, every one continued to the undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import places, training
from campaign.faults import FAULTS, Workplaces
from campaign.workplace import CannotRunError, DidNotHoldError


@pytest.fixture(scope="module")
def place(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> training.TrainingPlace:
    place = Workplaces(tmp_path_factory.mktemp("campaign"), photographs).training
    assert isinstance(place, training.TrainingPlace)
    return place


@pytest.mark.parametrize(
    "seed", [pytest.param(0, id="with loader processes", marks=pytest.mark.campaign), pytest.param(1, id="twice")]
)
def test_a_killed_training_continues_bit_for_bit(place: training.TrainingPlace, tmp_path: Path, seed: int) -> None:
    assert training.kill_training(place, seed, tmp_path)["digest"] == place.digest


def test_a_training_that_is_told_to_stop_does(place: training.TrainingPlace, tmp_path: Path) -> None:
    assert training.stop_training(place, 1, tmp_path)["digest"] == place.digest


def test_a_training_ends_before_its_deadline(place: training.TrainingPlace, tmp_path: Path) -> None:
    assert training.reach_deadline(place, 1, tmp_path)["digest"] == place.digest


@pytest.mark.parametrize("seed", [2, 3], ids=["bit", "length"])
def test_a_damaged_checkpoint_costs_the_steps_after_the_one_before(
    place: training.TrainingPlace, tmp_path: Path, seed: int
) -> None:
    assert training.damage_checkpoint(place, seed, tmp_path)["digest"] == place.digest


def test_a_full_disk_is_one_line_and_space_mends_it(place: training.TrainingPlace, tmp_path: Path) -> None:
    try:
        assert places.fill_disk(place, 0, tmp_path)["digest"] == place.digest
    except CannotRunError as reason:
        pytest.skip(str(reason))


def test_a_run_that_differs_would_be_noticed(place: training.TrainingPlace, tmp_path: Path) -> None:
    """The check itself: a line of the metrics, a file too many."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(place.reference, run)
    assert place.check_result(run) == place.digest
    (run / "left.tmp").touch()
    with pytest.raises(DidNotHoldError, match="left over"):
        place.check_result(run)
    (run / "left.tmp").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch": 2, "step": 1', '"epoch": 2, "step": 2', 1))
    with pytest.raises(DidNotHoldError, match="logged"):
        place.check_result(run)


def test_the_campaign_kills_at_least_thirty() -> None:
    assert FAULTS["training_killed"].trials >= 30
