"""Samples of the faults of campaign/slurm.py on the running cluster; `-m campaign` has one trial of each of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import slurm
from campaign.cluster import start_anew
from campaign.workplace import DidNotHoldError

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def place(cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> slurm.ClusterPlace:
    return slurm.ClusterPlace(tmp_path_factory.mktemp("faults") / "place", photographs)


@pytest.mark.parametrize(
    ("trial", "seed"),
    [
        pytest.param(slurm.job_fails, 1, id="a training's process is killed", marks=pytest.mark.campaign),
        pytest.param(slurm.scancel, 0, id="scancel of a shard's job", marks=pytest.mark.campaign),
        pytest.param(slurm.main_killed, 0, id="Snakemake is killed while a shard's job runs"),
        pytest.param(slurm.no_data, 0, id="photographs not mounted", marks=pytest.mark.campaign),
        pytest.param(slurm.main_killed, 1, id="Snakemake is killed and its training ends", marks=pytest.mark.campaign),
        pytest.param(slurm.main_killed, 5, id="Snakemake and its training are killed", marks=pytest.mark.campaign),
        pytest.param(slurm.out_of_memory, 0, id="out of memory", marks=pytest.mark.campaign),
        pytest.param(slurm.time_limit, 2, id="a training at its time limit", marks=pytest.mark.campaign),
        pytest.param(slurm.slurmd_killed, 0, id="slurmd is killed", marks=pytest.mark.campaign),
        pytest.param(slurm.slurmd_killed, 2, id="a node restarts", marks=pytest.mark.campaign),
        pytest.param(slurm.slurmctld_restarted, 0, id="slurmctld restarts", marks=pytest.mark.campaign),
        pytest.param(slurm.full_disk, 1, id="disk full in a training", marks=pytest.mark.campaign),
    ],
)
def test_a_fault_on_the_cluster(
    place: slurm.ClusterPlace, tmp_path: Path, trial: slurm.TrialFunction, seed: int
) -> None:
    try:
        assert trial(place, seed, tmp_path / "scratch")["digest"]
    except BaseException:
        start_anew()  # what a failed trial leaves would fail the tests after it
        raise


def test_that_the_checks_can_fail(place: slurm.ClusterPlace, tmp_path: Path) -> None:
    trial = slurm.Trial(place, 0, tmp_path / "scratch")
    assert trial.start().wait().code == 0
    assert trial.check_end(again=0)["jobs"] == ["COMPLETED"]
    left = trial.output / "train-00000-of-00001.lease"
    left.touch()
    with pytest.raises(DidNotHoldError, match=r"left over \['train-00000-of-00001\.lease'\]"):
        trial.check_end()
    left.unlink()
    (trial.directory / "logs" / "labels" / "twice.log").write_text("INFO part 3: 2 photographs\n")
    with pytest.raises(DidNotHoldError, match="26 photographs made, there are 24"):
        trial.check_end()
