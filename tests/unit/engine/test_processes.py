"""Real processes that join, agree, and end together: which one speaks, how soon, and how others learn of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.engine import processes
from tokenlabel.engine.processes import ALONE, Processes, find_place, join_processes

JOB = """
import argparse, os, signal, sys, time, torch
from tokenlabel.core.command import run_command
from tokenlabel.core.errors import DataError
from tokenlabel.engine.processes import join_processes

def run(args):
    with join_processes("cpu") as processes:
        assert processes.sum(torch.tensor([1, processes.rank])).tolist() == [processes.count, sum(range(processes.count))]
        assert processes.any(processes.rank == 1) and not processes.any(False)
        assert processes.broadcast({"rank": processes.rank, "of": [1.5]}) == {"rank": 0, "of": [1.5]}
        processes.barrier()
        print(f"joined {processes.rank} pid {os.getpid()}", flush=True)
        if sys.argv[1] == "all_mistaken":
            for _ in range(8):  # still under way, on threads of the group's own, when the error comes
                torch.distributed.all_reduce(torch.ones(3_000_000), async_op=True)
            raise DataError("labels are missing. Give --labels.")
        if processes.rank == 1:
            if sys.argv[1] == "bug":
                raise ValueError("a bug of process one")
            if sys.argv[1] == "mistake":
                raise DataError("labels are missing. Give --labels.")
            if sys.argv[1] in ("SIGKILL", "SIGSTOP", "SIGSEGV"):
                os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        for _ in range(2 if sys.argv[1] == "fine" else 10_000):
            processes.sum(torch.ones(1000))
            time.sleep(0.01)
    return 0

sys.exit(run_command(run, argparse.Namespace(log=None)))
"""


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: list[str]
    seconds: float  # from the moment at which all had joined


def run(folder: Path, count: int, what: str, command: list[str] | None = None) -> Ended:
    (folder / "joining_job.py").write_text(JOB)
    launch = command or [sys.executable, "-m", "tokenlabel.engine.launch", "--processes", str(count), "joining_job"]
    log = folder / "stderr"
    with open(log, "w") as stderr:
        process = subprocess.Popen([*launch, what], cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert process.stdout is not None
        joined = [process.stdout.readline() for _ in range(count)]
        began = time.monotonic()
        rest, _ = process.communicate(timeout=150)
    said = [line for line in log.read_text().splitlines() if line]
    return Ended(process.returncode, "".join(joined) + rest, said, time.monotonic() - began)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.campaign)])
def test_the_process_that_failed_shows_its_traceback_and_no_other_speaks(tmp_path: Path, count: int) -> None:
    ended = run(tmp_path, count, "bug")
    assert ended.returncode == 1
    assert ended.stderr[0] == f"process 1: process 1 of {count} failed:"
    assert ended.stderr[1].startswith("Traceback")
    assert ended.stderr[-1] == "ValueError: a bug of process one"
    assert sum(line.startswith("Traceback") for line in ended.stderr) == 1
    assert ended.seconds < 60


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (2, "SIGKILL"),
        pytest.param(4, "SIGKILL", marks=pytest.mark.campaign),
        pytest.param(4, "SIGSEGV", marks=pytest.mark.campaign),
    ],
)
def test_a_killed_process_is_named_with_its_signal(tmp_path: Path, count: int, name: str) -> None:
    ended = run(tmp_path, count, name)
    assert ended.returncode == 1
    assert ended.stderr[-1].startswith(f"error: process 1 of {count} (pid ")
    assert f") was killed by {name}" in ended.stderr[-1]
    assert not any("Traceback" in line for line in ended.stderr)
    assert ended.seconds < 60


@pytest.mark.parametrize("what", ["all_mistaken", pytest.param("mistake", marks=pytest.mark.campaign)])
def test_a_users_mistake_is_one_line_of_one_process(tmp_path: Path, what: str) -> None:
    ended = run(tmp_path, 2, what)
    assert (ended.returncode, ended.stderr) == (2, ["error: labels are missing. Give --labels."])
    assert ended.seconds < 60


SPOILED = """
import argparse, dataclasses, sys
from pathlib import Path
from tests.unit.engine import test_loop
from tokenlabel.core.command import run_command
from tokenlabel.engine.processes import join_processes

def spoiled(model, batch, epoch, step):
    found, parts = test_loop.loss(model, batch, epoch, step)
    return (found * float("inf") if (epoch, step, batch.index) == (0, 2, 1) else found), parts

def run(args):
    with join_processes("cpu") as processes:
        print(f"joined {processes.rank}", flush=True)
        task = dataclasses.replace(
            test_loop.TASK, loss=spoiled, describe=lambda ids: [f"photograph {identifier}" for identifier in ids],
            batches=lambda epoch, first: ([step[processes.rank]] for step in test_loop.batches(epoch, first)),
        )
        test_loop.train(Path("run"), task, processes=processes)
    return 0

sys.exit(run_command(run, argparse.Namespace(log=None)))
"""


@pytest.mark.campaign
def test_the_process_whose_photographs_gave_no_finite_loss_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(sys.modules[__name__], "JOB", SPOILED)
    ended = run(tmp_path, 2, "")
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr if line.startswith("error: ")]
    assert "epoch 0, step 2" in line
    assert "Photographs: photograph 100, photograph 101, photograph 102, photograph 103." in line
    assert not any("Traceback" in line for line in ended.stderr)


@pytest.mark.campaign
def test_a_process_that_stands_still_takes_the_others_down(tmp_path: Path) -> None:
    ended = run(tmp_path, 2, "SIGSTOP")
    assert ended.returncode == 1
    assert "nothing was heard of process 1 of 2 for 30 s" in ended.stderr[0]
    assert ended.seconds < 80  # the launcher gives the stopped one the time to write a checkpoint


@pytest.mark.campaign
def test_torchrun_starts_them_too(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "joining_job",
    ]
    assert run(tmp_path, 2, "fine", command).returncode == 0
    ended = run(tmp_path, 2, "bug", command)
    assert ended.returncode == 1
    assert ended.stderr.index("ValueError: a bug of process one") < min(
        (number for number, line in enumerate(ended.stderr) if "ChildFailedError" in line), default=0
    )


@pytest.mark.campaign
def test_a_launcher_that_is_told_to_stop_tells_its_processes(tmp_path: Path) -> None:
    telling = "signal.signal(signal.SIGUSR1, lambda *_: os._exit(print('told', flush=True) or 138))"
    (tmp_path / "joining_job.py").write_text(JOB.replace("def run(args):", f"def run(args):\n    {telling}"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenlabel.engine.launch", "--processes", "2", "joining_job", "endless"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(2):
        assert "joined" in process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert out.split() == ["told", "told"]
    assert process.returncode == 128 + signal.SIGUSR1


def test_processes_started_by_srun_find_their_main_one(tmp_path: Path) -> None:
    """srun's variables, the rest real: each is told its number, the store is the main process's."""
    (tmp_path / "joining_job.py").write_text(JOB)
    shared = os.environ | {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NUM_NODES": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "joining_job", "fine"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env=shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].split()[:2] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said == [["joined", "0"], ["joined", "1"]]


def place_in(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Processes:
    for name in [
        name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    ]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return find_place()


def test_a_place_is_read_from_torchrun_or_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in(monkeypatch) == ALONE
    assert place_in(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1") == Processes(5, 8, 1)
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    assert place_in(monkeypatch, **srun) == Processes(3, 4, 1)
    # a batch script: the job has four tasks, this is none of them
    assert place_in(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_LOCALID="0") == ALONE


def test_several_nodes_without_an_address_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    place_in(monkeypatch, SLURM_JOB_NUM_NODES="2", RANK="0", WORLD_SIZE="2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(processes.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="MASTER_ADDR does not say"), join_processes("cpu"):
        pass


def test_alone_nothing_is_joined() -> None:
    with join_processes("cpu") as alone:
        assert alone is ALONE
        assert alone.is_main
        alone.barrier()
        assert alone.broadcast([1]) == [1]
