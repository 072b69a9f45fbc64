"""Samples of the fault campaign: the same trials with real weights on real photographs, few seeds each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from campaign import damage, hostile, interruptions, places
from campaign.faults import FAULTS, Workplaces
from campaign.workplace import STEM, CannotRunError, DidNotHoldError
from tokenlabel.core.files import sha256_of, write_json
from tokenlabel.labels.shards import marker_path, read_marker


@pytest.fixture(scope="module")
def workplaces(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplaces:
    return Workplaces(tmp_path_factory.mktemp("campaign"), photographs, map_px=160, writer_copies=15)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("place", "seed"),  # killed at 0.62, 0.84, 0.84, 0.24 of its time
    [("job", 5), ("job", 0), ("writer", 0), ("writer", 3)],
)
def test_a_killed_writer(workplaces: Workplaces, tmp_path: Path, place: str, seed: int) -> None:
    interruptions.kill_writer(getattr(workplaces, place), seed, tmp_path / "scratch")


@pytest.mark.parametrize("seed", [0, 5])
def test_a_job_told_to_stop(workplaces: Workplaces, tmp_path: Path, seed: int) -> None:
    interruptions.terminate_job(workplaces.job, seed, tmp_path / "scratch")


@pytest.mark.parametrize("seed", [0, 1], ids=["together", "one midway"])
def test_two_writers(workplaces: Workplaces, tmp_path: Path, seed: int) -> None:
    found = interruptions.start_two_writers(workplaces.job, seed, tmp_path / "scratch")
    assert found["labeled"] == workplaces.job.images


def test_a_writer_that_stood_still(workplaces: Workplaces, tmp_path: Path) -> None:
    found = interruptions.stop_writer(workplaces.job, 1, tmp_path / "scratch", stale_s=0.7)
    assert found["exit_codes"] in ([2, 0], [0, 0])  # both, where the first had finished before it was stopped


@pytest.mark.parametrize("seed", [0, 1])
def test_a_damaged_part(workplaces: Workplaces, tmp_path: Path, seed: int) -> None:
    interruptions.damage_part(workplaces.job, seed, tmp_path / "scratch")


@pytest.mark.parametrize(("place", "seed"), [("job", 1), ("writer", 0)])  # at a fifth and a half of what they need
def test_a_full_disk(workplaces: Workplaces, tmp_path: Path, place: str, seed: int) -> None:
    try:
        found = places.fill_disk(getattr(workplaces, place), seed, tmp_path / "scratch")
    except CannotRunError as error:
        pytest.skip(str(error))
    assert "No space left on device" in found["said"]


@pytest.mark.parametrize("seed", [0, 1], ids=["empty", "after a kill"])
def test_a_read_only_folder(workplaces: Workplaces, tmp_path: Path, seed: int) -> None:
    try:
        places.forbid_writing(workplaces.job, seed, tmp_path / "scratch")
    except CannotRunError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "trial",
    [
        damage.flip_bits,
        damage.flip_bits_of_structure,
        damage.cut_off,
        damage.zero_blocks,
        damage.swap_blocks,
    ],
    ids=lambda trial: trial.__name__,
)
def test_damaged_shards(workplaces: Workplaces, tmp_path: Path, trial: object) -> None:
    assert callable(trial)
    found = trial(workplaces.maps, 0, tmp_path / "scratch")
    assert found["wrong"] == []
    assert found["held"] == found["count"] == damage.AT_ONCE


def test_hostile_files(workplaces: Workplaces, tmp_path: Path) -> None:
    found = hostile.read_hostile_files(workplaces.maps, 0, tmp_path / "scratch")
    assert found["wrong"] == {}
    assert found["count"] > 100


# --- the trials can fail ---


def test_a_half_shard_under_its_name_is_seen(workplaces: Workplaces, tmp_path: Path) -> None:
    shard = tmp_path / f"{STEM}.h5"
    whole = (workplaces.job.reference / shard.name).read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DidNotHoldError, match="before it is whole"):
        workplaces.job.check_nothing_false(tmp_path)
    shard.write_bytes(whole)
    assert workplaces.job.check_nothing_false(tmp_path) == "shard without marker"
    with pytest.raises(DidNotHoldError, match="left over"):
        workplaces.job.check_result(tmp_path)


def test_another_shards_labels_are_seen(workplaces: Workplaces, tmp_path: Path) -> None:
    for path in workplaces.maps.reference.iterdir():
        shutil.copy(path, tmp_path)
    with pytest.raises(DidNotHoldError, match="holds other labels"):
        workplaces.job.check_nothing_false(tmp_path)
    with pytest.raises(DidNotHoldError, match="not those of the undisturbed job"):
        workplaces.job.check_result(tmp_path)


def test_damage_that_goes_unseen_is_seen(workplaces: Workplaces, tmp_path: Path) -> None:
    """An undamaged copy passes verify, so it is no damage; a copy of other labels with a fitting marker reads wrong."""
    unharmed = damage.damage(workplaces.maps, 0, tmp_path / "unharmed", lambda rng, whole: {}, count=1)
    assert unharmed["outcomes"] == {"ok": 1}
    assert unharmed["held"] == 0
    other = tmp_path / "other"
    shutil.copytree(workplaces.job.reference, other)
    shard = other / f"{STEM}.h5"
    write_json(marker_path(shard), read_marker(shard) | {"sha256": sha256_of(shard)})
    (seen,) = damage.read_all(workplaces.maps.reference / shard.name, [{"folder": str(other)}], tmp_path)
    assert seen["read"] == "wrong"
    assert damage.complaint_about(seen)


def test_a_reader_that_dies_is_seen(workplaces: Workplaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "READER", "import sys, os; sys.stdin.read(); os.abort()")
    (seen,) = damage.read_all(workplaces.maps.reference / f"{STEM}.h5", [{}], tmp_path)
    assert damage.complaint_about(seen).startswith("verify: crash the process ended with -6")


def test_every_fault_has_what_the_issue_counts() -> None:
    assert FAULTS["kill_job"].trials == FAULTS["kill_writer"].trials == 50
    assert FAULTS["bit_flips"].trials * damage.AT_ONCE == 1000
    assert FAULTS["truncations"].trials * damage.AT_ONCE == 100
