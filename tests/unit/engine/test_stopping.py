"""Signals and deadlines, in processes of their own; what a signal does is the kernel's, not a mock's."""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokenlabel.engine import stopping
from tokenlabel.engine.stopping import DEADLINE_EXIT, SLURM_MARGIN_S, Stop, find_deadline

SCRIPT = """
import hashlib, pathlib, sys, time
from tokenlabel.core.errors import exit_on_user_error
from tokenlabel.engine import stopping
stopping.GRACE_S, stopping.IDLE_GRACE_S = 1.0, 0.3
def main():
    with stopping.stopping_after_step(lambda: print("released", flush=True), {deadline}) as stop:
        stop.unsaved = {unsaved}
        print("ready", flush=True)
        {body}
    return 0
sys.exit(exit_on_user_error(main))
"""
STEPS = """
        while not stop.requested(0.5):
            time.sleep(0.05)
        raise stop.explained("saved")
"""
NEVER = 'hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)'
WRITING = """
        with stop.saving:
            time.sleep(3)
            stop.unsaved = False
            print("written", flush=True)
        time.sleep(60)
"""


def start(body: str, *, unsaved: bool = True, deadline: str = "None") -> subprocess.Popen[str]:
    script = SCRIPT.format(body=body.strip(), unsaved=unsaved, deadline=deadline)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", stopping.STOPPING, ids=lambda number: number.name)
def test_a_signal_stops_after_the_step_with_the_scheduler_s_exit_code(number: signal.Signals) -> None:
    process = start(STEPS)
    process.send_signal(number)
    out, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"error: stopped by {number.name}; saved. Run the same command again to continue.\n"
    assert out == ""  # the block was left, which gives back what it holds


def test_a_step_that_never_ends_does_not_hold_the_job_back() -> None:
    process = start(NEVER)
    began = time.monotonic()
    process.terminate()
    out, said = process.communicate(timeout=20)
    assert 0.9 < time.monotonic() - began < 10
    assert process.returncode == 143
    assert "stopped by SIGTERM; the step under way did not end within 1 s, so the last checkpoint stays" in said
    assert out == "released\n"


def test_a_pass_with_nothing_to_lose_is_not_waited_for() -> None:
    process = start(NEVER, unsaved=False)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "stopped by SIGTERM; everything done so far is saved." in said


def test_a_checkpoint_that_is_being_written_is_finished() -> None:
    process = start(WRITING)
    process.terminate()
    out, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert out == "written\nreleased\n"
    assert "everything done so far is saved" in said


def test_a_deadline_has_an_exit_code_of_its_own() -> None:
    process = start(STEPS, deadline="time.time() + 1.5")
    began = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert 0.5 < time.monotonic() - began < 1.5 + 1
    assert process.returncode == DEADLINE_EXIT == 75
    assert said == "error: stopped by the deadline; saved. Run the same command again to continue.\n"


def test_time_in_reserve_counts() -> None:
    stop = Stop(time.time() + 100)
    assert not stop.requested(90)
    assert stop.requested(101)
    assert not Stop().requested(1e9)


def test_the_deadline_is_the_users_else_slurms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert find_deadline(None) is None
    assert find_deadline(60) == pytest.approx(time.time() + 60, abs=5)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1800000000")
    assert find_deadline(None) == 1_800_000_000 - SLURM_MARGIN_S
    assert find_deadline(60) == pytest.approx(time.time() + 60, abs=5)
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_deadline(None) is None  # no squeue here
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\ncase "$*" in "-h -j 17 -o %e") echo 2026-11-25T14:00:00;; *) exit 1;; esac\n')
    squeue.chmod(0o755)
    assert find_deadline(None) == datetime.datetime(2026, 11, 25, 14).timestamp() - SLURM_MARGIN_S
    squeue.write_text("#!/bin/sh\necho N/A\n")
    assert find_deadline(None) is None


LOADER = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from tokenlabel.engine.stopping import leave_signals_to_parent
class Slow(Dataset):
    def __len__(self): return 6
    def __getitem__(self, index):
        time.sleep(0.1)
        return index
signal.signal(signal.SIGTERM, lambda *_: None)  # as the job itself does
steps = iter(DataLoader(Slow(), batch_size=1, num_workers=2, worker_init_fn=leave_signals_to_parent))
found = [int(next(steps))]
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    for worker in steps._workers:
        os.kill(worker.pid, number)
found += [int(batch) for batch in steps]
print(found)
"""


def test_loader_processes_outlive_what_a_scheduler_sends_to_every_process() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADER], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "[0, 1, 2, 3, 4, 5]\n", ended.stderr
