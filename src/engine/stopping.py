"""Ends a job in time: signals of a scheduler or a user, and the moment at which the scheduler will end it anyway.

Python runs a signal's handler only between two of its own instructions; a pass of a large network can take longer than a
scheduler waits before it kills. So the signal's number comes through a pipe to a thread that does the rest. Annotation saves
in that thread (`stopping_by_signal`); a training saves between two steps (`stopping_after_step`), with the thread as watchdog.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from ..core.errors import TokenLabelError
from ..core.log import logger

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
DEADLINE_EXIT = 75  # sysexits.h: a temporary failure, to be tried again; a signal's exit code is 128 + its number
GRACE_S = 20.0  # from a signal to the end; Slurm kills 30 s after its SIGTERM
IDLE_GRACE_S = 2.0  # where all that is done is saved
SLURM_MARGIN_S = (
    10.0  # from the end that a job makes by itself to Slurm's: loader processes and libraries take their time
)


class StoppedError(TokenLabelError):
    """A training that was told to stop and has saved its state."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stop:
    """Whether a training has been told to stop, and whether it has anything to lose.

    Attributes:
        deadline: seconds since the epoch at which the job will be ended anyway, or None.
        unsaved: whether steps were done since the last checkpoint; the loop keeps it.
        saving: held while a checkpoint is being written.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.unsaved = False
        self.saving = threading.Lock()
        self._signal: signal.Signals | None = None
        self._ended = threading.Event()

    def requested(self, reserve_s: float) -> bool:
        """Whether a signal came, or less than `reserve_s` are left until the deadline."""
        return self._signal is not None or (self.deadline is not None and time.time() + reserve_s >= self.deadline)

    def explained(self, said: str) -> StoppedError:
        """The error that ends this process, by what made it stop; of several processes not all have got the signal."""
        if self._signal is not None:
            return StoppedError(_sentence(self._signal.name, said), 128 + self._signal)
        return StoppedError(_sentence("the deadline" if self.deadline else "another process", said), DEADLINE_EXIT)

    def end_by(self, number: int, release: Callable[[], None]) -> None:
        """The watchdog: lets the loop end by itself, and ends the process where it does not."""
        self._signal = signal.Signals(number)
        patience_s = GRACE_S if self.unsaved else IDLE_GRACE_S
        if self._ended.wait(patience_s):
            return
        with self.saving:  # what is being written is worth the seconds more
            said = "everything done so far is saved"
            if self.unsaved:
                said = f"the step under way did not end within {patience_s:g} s, so the last checkpoint stays as it is"
        if self._ended.is_set():
            return
        release()
        _end(_sentence(self._signal.name, said), 128 + number)

    def ended(self) -> None:
        """Tells the watchdog that the block is left."""
        self._ended.set()


def _sentence(reason: str, said: str) -> str:
    return f"stopped by {reason}; {said}. Run the same command again to continue."


@contextlib.contextmanager
def stopping_after_step(release: Callable[[], None], deadline: float | None = None) -> Iterator[Stop]:
    """Within the block a signal makes the training stop after the step under way, and within GRACE_S in any case.

    Args:
        release: called before the process ends without leaving the block: gives back what the block holds.
        deadline: seconds since the epoch at which the job will be ended, or None.
    """
    stop = Stop(deadline)
    with _watching_signals(lambda number: stop.end_by(number, release)):
        try:
            yield stop
        finally:
            stop.ended()


@contextlib.contextmanager
def stopping_by_signal(finish: Callable[[str], str]) -> Iterator[None]:
    """Within the block a signal ends the process, after `finish` has saved what can be saved.

    Args:
        finish: given the signal's name, saves, and returns the line that the user shall read; called in a thread while the
            main thread may still compute. The process then ends with 128 + the signal's number, whatever the main thread does.
    """

    def act(number: int) -> None:
        name = signal.Signals(number).name
        try:
            line = finish(name)
        except Exception as error:  # noqa: BLE001 - the process ends here; its last line says why
            line = f"stopped by {name}; the last part could not be saved: {' '.join(str(error).split())}"
        _end(line, 128 + number)

    with _watching_signals(act):
        yield


@contextlib.contextmanager
def _watching_signals(act: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the business of whoever runs this in a thread
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
    wakeup = signal.set_wakeup_fd(writing)
    watcher = threading.Thread(target=_watch, args=(reading, act), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")  # ends the watcher
        watcher.join()
        os.close(reading)
        os.close(writing)


def _watch(reading: int, act: Callable[[int], None]) -> None:
    while number := os.read(reading, 1)[0]:
        if number in STOPPING:
            act(number)


def _end(line: str, code: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)  # noqa: T201 - logging may be held by the main thread
    os._exit(code)


def leave_signals_to_parent(worker: int) -> None:
    """A loader process's start: a scheduler signals every process of a job, and the step under way still needs this one.

    torch ends its loader processes by SIGTERM where they hang, so the second one counts.
    """
    signal.set_wakeup_fd(-1)  # inherited: what comes here would be read as the training's own signal

    def obey_the_next(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, obey_the_next)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def put_back_into_queue() -> bool:
    """Has Slurm end this job and run it again, with the same limits of memory and time; whether it will.

    Slurm itself kills the job and queues it, so that who watches the job by its number sees it wait, not fail. False outside a
    batch job of Slurm, and where the job or its site does not allow it (sbatch --no-requeue, JobRequeue=0).
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("Slurm job %s: it cannot be put back into the queue (%s)", job, error)
        return False
    if answer.returncode:
        said = " ".join((answer.stderr or answer.stdout).split())
        logger.warning("Slurm job %s: it cannot be put back into the queue (%s)", job, said)
    return answer.returncode == 0


def find_deadline(seconds: float | None) -> float | None:
    """When this job will be ended, in seconds since the epoch; None where nobody has said.

    Args:
        seconds: from now, as the user gave them; None: SLURM_MARGIN_S before Slurm's end time, where the job runs under Slurm.
    """
    if seconds is not None:
        return time.time() + seconds
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"]) - SLURM_MARGIN_S
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.split()
        return datetime.datetime.fromisoformat(answer[0]).timestamp() - SLURM_MARGIN_S  # squeue says local time
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        logger.warning("Slurm job %s: its end time is not known; no checkpoint will be made just before it", job)
        return None
