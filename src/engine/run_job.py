"""A training as a job of the workflow: one owner of the run's folder, its marker, its legs, and what ends it early.

Called by the jobs of train and segment, which bring the model, its data and what shall be saved. Guarantees that a finished run is
never trained again and that two jobs never write into one folder. Never knows what is trained.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError, OutputError
from ..core.files import Lease, read_json, remove_leftovers_in, sha256_of, write_json, write_json_if_changed
from ..core.identity import digest_of
from ..core.log import logger
from ..core.markers import read_kept, write_marker
from ..models.weights import WEIGHTS_FILE
from .checkpoints import Checkpoints
from .device import choose_device, choose_precision, set_tf32, set_threads
from .loop import FitResult, Task, fit
from .optimisation import Optimisation
from .processes import ALONE, Processes, join_processes
from .reporting import Reporter
from .stopping import DEADLINE_EXIT, Stop, StoppedError, find_deadline, put_back_into_queue, stopping_after_step

DONE = "done.json"
REQUEUED_S = 120.0  # from the request to Slurm's signal; nothing else may happen in between


@dataclass(frozen=True)
class Run:
    """A run under way in this process, as its stage sees it.

    Attributes:
        spec: of the run; its digest and the seed are what a checkpoint must be of.
        machine: device, precision, threads and what the loop asks for; its micro_batch is this stage's.
        seed: of the run.
        folder: of this seed; weights, checkpoints and metrics lie there.
        until_epoch: the leg's end, None: the run's.
        allow_changed: whether to continue a run that another spec began.
        processes: of the training.
        stop: says when to stop early.
        check_owner: raises where another job took the folder over because this one stood still (suspended by a scheduler, say).
    """

    spec: dict[str, Any]
    machine: dict[str, Any]
    seed: int
    folder: Path
    until_epoch: int | None
    allow_changed: bool
    processes: Processes
    stop: Stop
    check_owner: Callable[[], None]

    def set_up_device(self) -> tuple[torch.device, torch.dtype]:
        """Device and precision of the training; sets threads and TF32 as the machine's settings say."""
        machine = self.machine
        device = choose_device(machine["device"])
        precision = choose_precision(machine["precision"], device)
        set_threads(machine["threads"])
        set_tf32(machine["tf32"])
        logger.info("device %s, precision %s, micro-batch %d", device, precision, machine["micro_batch"])
        return device, precision

    def train(
        self, model: nn.Module, task: Task, optimisation: Optimisation, *, device: torch.device, precision: torch.dtype,
        micro_batch: int, save: Callable[[FitResult], str], unreadable: int, missed_each_epoch: int, summary: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Trains a model or continues, reports, and has the results of the whole run saved.

        Args:
            model: on the CPU, in its starting weights.
            task: batches, loss and validation.
            optimisation: schedule and optimiser settings.
            device, precision: as `set_up_device` gave them.
            micro_batch: photographs of a forward pass.
            save: writes what the run is for and returns the SHA-256 of WEIGHTS_FILE; the main process calls it, at the run's end.
            unreadable: photographs that were known to be unreadable and take no part.
            missed_each_epoch: how many of those an epoch would have read.
            summary: what summary.json says besides.

        Returns:
            what the run's marker shall say of it.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder, steps = self.folder, task.steps_per_epoch
        reporter = Reporter(
            folder, epochs=optimisation.total_epochs, steps_per_epoch=steps, machine=self.machine,
            title=f"{folder.parent.name} seed {self.seed}", main=self.processes.is_main,
        )  # fmt: skip
        said = None
        try:
            result = fit(
                model, task, optimisation, folder, digest=f"{digest_of(self.spec)}-seed{self.seed}",
                settings={**self.spec, "seed": self.seed}, seed=self.seed, device=device, precision=precision,
                machine=self.machine, reporter=reporter, processes=self.processes, stop=self.stop, until_epoch=self.until_epoch,
                allow_changed=self.allow_changed, check_owner=self.check_owner, micro_batch=micro_batch,
            )  # fmt: skip
            self.check_owner()
            marker = {
                "epochs": result.epochs,
                "steps_per_epoch": steps,
                "micro_batch": micro_batch,
                "processes": self.processes.count,
                "images": result.images,
                "skipped": result.skipped + missed_each_epoch * result.epochs,
                "unreadable": unreadable,
                **({"changed": result.changed} if result.changed else {}),
            }
            if self.until_epoch is None:
                if self.processes.is_main:
                    marker["weights_sha256"] = save(result)
                said = marker | {"device": str(device), "precision": str(precision).removeprefix("torch."), **summary}
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise OutputError(
                f"{folder}: cannot be written ({error.strerror}). Free space or permission is needed there; the last checkpoint "
                "stays."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                reporter.close(said)
        return marker


def run_training(
    train: Callable[[Run], dict[str, Any]],
    spec: dict[str, Any],
    machine: dict[str, Any],
    *,
    seed: int,
    done: Path,
    until_epoch: int | None = None,
    legs: int = 1,
    deadline_s: float | None = None,
    requeue: bool = False,
    allow_changed: bool = False,
) -> dict[str, Any]:
    """Trains one run, or a leg of it, and writes its marker.

    At the deadline a leg hands over: its marker says how far it came, and the next leg continues there. The last one, or a run in
    one piece, ends with DEADLINE_EXIT; with `requeue` its Slurm job goes back into the queue, if it came forward at all.

    Args:
        train: the stage's part, called in each process of the training once the folder is this job's; returns what the marker shall
            say (`Run.train` makes it), with weights_sha256 at the run's end.
        spec: the run's.
        machine: device, precision, and what the stage and the loop ask for.
        seed: of the run.
        done: the marker; weights, checkpoints and metrics lie beside it.
        until_epoch: a leg ends when so many epochs of the run are done; None: the whole run.
        legs: of the run, for its marker.
        deadline_s: seconds from now at which the job will be ended; None: Slurm's end time, if any.
        requeue: whether to ask Slurm to run this job again where the deadline leaves it unfinished.
        allow_changed: whether to continue a run that another spec began.

    Returns:
        what the marker says.

    Raises:
        CheckpointError: the folder holds another finished run.
        StoppedError: a signal or the deadline came; the state is saved, its exit_code is for the process.
    """
    started = time.monotonic()
    folder = done.parent
    with (
        join_processes(machine["device"]) as processes,
        _owning(folder, processes) as ownership,
        stopping_after_step(ownership.release, find_deadline(deadline_s)) as stop,
    ):
        marker = {"digest": digest_of(spec), "seed": seed}
        # the main process has waited for the lease, and what it finds now another job may have finished meanwhile
        finished: dict[str, Any] | None = processes.broadcast(
            _finished(folder / DONE, marker, allow_changed) if processes.is_main else None
        )
        if finished is not None:
            logger.info("%s: the run is finished; nothing is left to do. To train it again, delete that folder", folder)
            if until_epoch is None:
                if processes.is_main:
                    write_json_if_changed(done, finished)  # Snakemake removed it, or it was damaged
                    Checkpoints(folder, "", {}, processes).remove()  # a kill may have come between marker and removal
                return finished
            marker |= {"epochs": until_epoch}
        else:
            before = _newest_checkpoint(folder)
            try:
                marker |= train(
                    Run(spec, machine, seed, folder, until_epoch, allow_changed, processes, stop, ownership.check)
                )
                marker |= {"legs": legs} if legs > 1 else {}
            except StoppedError as stopped:
                if stopped.exit_code != DEADLINE_EXIT:
                    raise
                if until_epoch is None:
                    if requeue:
                        _put_back_into_queue(stopped, processes, came_forward=_newest_checkpoint(folder) != before)
                    raise
                logger.warning("%s The next leg does so.", stopped)
                marker |= {"stopped": str(stopped)}
        marker["seconds"] = round(time.monotonic() - started, 3)
        if processes.is_main:
            ownership.check()
            if "weights_sha256" in marker:
                write_marker(done, marker)
                Checkpoints(folder, "", {}, processes).remove()
            else:
                write_json(done, marker)
    return marker


def _newest_checkpoint(folder: Path) -> Path | None:
    """Of the run; the name says after how many steps."""
    return next(iter(Checkpoints(folder, "", {}, ALONE).paths()), None)


def _put_back_into_queue(stopped: StoppedError, processes: Processes, *, came_forward: bool) -> None:
    """Has Slurm run this job again and waits in all processes for the signal with which it ends them; returns where it cannot.

    A job that did not come forward by one step would go round for ever, so it fails instead.
    """
    queued = processes.broadcast(came_forward and put_back_into_queue() if processes.is_main else None)
    if queued:
        logger.warning("%s The Slurm job goes back into the queue and does so.", stopped)
        time.sleep(REQUEUED_S)


@dataclass(frozen=True)
class _Ownership:
    """The right to write into a run's folder.

    Attributes:
        check: raises where another job took over because this one stood still (suspended by a scheduler, say).
        release: gives it back.
    """

    check: Callable[[], None]
    release: Callable[[], None]


@contextlib.contextmanager
def _owning(folder: Path, processes: Processes) -> Iterator[_Ownership]:
    """Holds the run's lease, in one process for all."""
    if not processes.is_main:
        yield _Ownership(lambda: None, lambda: None)
        return
    with Lease(folder / "run.lease") as lease:
        remove_leftovers_in(folder)
        yield _Ownership(lease.check, lease.release)


def _finished(done: Path, marker: dict[str, Any], allow_changed: bool) -> dict[str, Any] | None:
    """The marker of the whole run, if it is done already and its weights are there.

    Raises:
        CheckpointError: the folder holds another finished run, whose weights would be written over.
    """
    weights = done.parent / WEIGHTS_FILE
    said = None
    with contextlib.suppress(OSError, ValueError):
        said = read_json(done)
    if not isinstance(said, dict):  # Snakemake removed it, or it is damaged: its copy says the same
        kept = read_kept(done)
        if (
            kept
            and marker.items() <= kept.items()
            and weights.is_file()
            and sha256_of(weights) == kept["weights_sha256"]
        ):
            return kept
        return None
    if not weights.is_file():
        return None
    if marker.items() <= said.items():
        return said
    if not allow_changed:
        raise CheckpointError(
            f"{done}: of another run (spec {said.get('digest')}, seed {said.get('seed')}; this one is {marker['digest']}, seed "
            f"{marker['seed']}). Give --done in another folder, or --allow-changed to write over it."
        )
    return None
