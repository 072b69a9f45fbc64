"""The test cluster: one real slurmctld and slurmd on this machine, started and stopped under a machine-wide lock.

Used by tests/slurm and by the trials of campaign/slurm.py. What is real: Slurm's own daemons, submission, scheduling, time and
memory limits, signals. What is not: several nodes, GPUs (two device files that schedule as GPUs) and accounting.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from .workplace import CannotRunError

SCRIPTS = Path(__file__).resolve().parents[1] / "tests" / "slurm" / "cluster"
CONFIGURATION = Path("/etc/slurm/slurm.conf")
# Slurm's places are the machine's own, so there is one cluster; by hand: flock /tmp/tokenlabel-slurm.lock COMMAND
LOCK = Path("/tmp/tokenlabel-slurm.lock")
DAEMONS = ("slurmctld", "slurmd", "sbatch", "munged")
PATHS = os.environ["PATH"] + ":/usr/sbin:/sbin"
# a test cluster has no accounting, and polls fast; partitions, GPUs and memory are the profile's own
TEST_CLUSTER = [
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20",
    "--jobs", "4",
]  # fmt: skip

Job = dict[str, str]
Found = TypeVar("Found")


@contextlib.contextmanager
def running_cluster(wait_s: float = 900) -> Iterator[None]:
    """Starts the cluster, and stops and wipes it after the block.

    Args:
        wait_s: seconds to wait for somebody else's cluster to end.

    Raises:
        CannotRunError: this machine has no Slurm, this user is not root, or the machine has a Slurm of its own.
    """
    missing = [name for name in DAEMONS if shutil.which(name, path=PATHS) is None]
    if missing or os.geteuid() != 0:
        raise CannotRunError(
            f"no Slurm here ({', '.join(missing) or 'not root'}); apt-get install slurmctld slurmd slurm-client munge"
        )
    with _lock(wait_s):
        if CONFIGURATION.exists() and "ClusterName=testcluster" not in CONFIGURATION.read_text(errors="replace"):
            raise CannotRunError(f"{CONFIGURATION}: this machine has a Slurm of its own, which is left alone")
        try:
            _start()
            yield
        finally:
            _script("stop.sh", "--wipe")


def start_anew() -> None:
    """A new cluster in place of the running one, after a trial that left it with a stuck job or a drained node."""
    _script("stop.sh", "--wipe")
    _start()


def _start() -> None:
    # two processors also where nproc says one, because OMP_NUM_THREADS is 1
    _script("setup.sh", SLURM_TEST_CPUS="2")


@contextlib.contextmanager
def _lock(wait_s: float) -> Iterator[None]:
    if _held_above():
        yield
        return
    try:
        with FileLock(LOCK, timeout=wait_s):
            yield
    except Timeout:
        raise CannotRunError(f"{LOCK}: held by another use of the test cluster for {wait_s:.0f} s") from None


def _held_above() -> bool:
    """Whether this command runs inside `flock LOCK ...`, which would make it wait for itself."""
    pid = os.getpid()
    while pid > 1:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if descriptor.readlink() == LOCK and _is_locked():
                        return True
        pid = int(re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()[1])
    return False


def _is_locked() -> bool:
    try:
        with FileLock(LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _script(name: str, *arguments: str, **environment: str) -> None:
    # no pipe: the daemons would keep it open
    with open("/tmp/tokenlabel-slurm.out", "w+", encoding="utf-8") as said:
        finished = subprocess.run(
            [SCRIPTS / name, *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=180, check=False,
            env=os.environ | {"PATH": PATHS} | environment,
        )  # fmt: skip
        said.seek(0)
        if finished.returncode:
            raise RuntimeError(f"{name} ended with {finished.returncode}: {said.read()[-3000:]}")


def jobs_seen_by_slurm(folder: Path | None = None) -> list[Job]:
    """What `scontrol show job` says of each job, oldest first; with a folder, of those that a workflow in it submitted."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, timeout=60, check=True
    )
    jobs = [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in shown.stdout.splitlines() if "JobId=" in line]
    return [job for job in jobs if folder is None or job.get("StdOut", "").startswith(f"{folder}/")]


def wait_until(condition: Callable[[], Found], said: str, timeout_s: float = 60) -> Found:
    """Waits until something is true, and returns it.

    Raises:
        TimeoutError: it is not after `timeout_s`; the message is `said`.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s: {said}")
        time.sleep(0.1)
    return found


def wait_for_jobs(folder: Path, state: str, count: int = 1, timeout_s: float = 60) -> list[Job]:
    """Waits until Slurm shows so many jobs of a workflow in a state, `RUNNING` say; returns them, oldest first."""

    def jobs() -> list[Job]:
        found = [job for job in jobs_seen_by_slurm(folder) if job["JobState"] == state]
        return found if len(found) >= count else []

    return wait_until(jobs, f"fewer than {count} jobs of {folder} are {state}", timeout_s)
