"""The cluster of all tests in this folder: started once, under a lock of the whole machine, stopped and wiped at the end.

What is real: slurmctld, slurmd, munge, sbatch, srun, scancel, limits of time and memory, and the profile in slurm/. What is not:
several nodes, GPUs (device files that are scheduled as such) and accounting. The tests run only where they are asked for, with
TOKENLABEL_SLURM_TESTS=1: they write /etc/slurm. They then fail, and do not skip, where Slurm or root is missing.

For test modules here: `cluster`, a fixture; from campaign.cluster `jobs_seen_by_slurm`, `wait_until`, `wait_for_jobs` and
TEST_CLUSTER, the options of a cluster without accounting; `run_on_cluster` runs Snakemake with them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign.cluster import TEST_CLUSTER, running_cluster
from tests.workflow.conftest import run_snakemake


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """A running cluster; jobs of earlier tests are still listed, so ask for those of a test's own folder."""
    if os.environ.get("TOKENLABEL_SLURM_TESTS") != "1":
        pytest.skip("starts a Slurm cluster on this machine, so only where TOKENLABEL_SLURM_TESTS=1")
    with running_cluster():
        yield


def run_on_cluster(directory: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`snakemake --profile slurm ARGUMENTS` in a directory; options as of `run_snakemake`."""
    return run_snakemake(directory, *arguments, "--profile", "slurm", *TEST_CLUSTER, **options)
