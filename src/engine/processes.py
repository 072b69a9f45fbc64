"""The processes of one training, on one node or several: who this one is, what they agree on, and how they end together.

Called by the loop, the batches and the validation. Started by `launch`, torchrun or Slurm's srun; alone by default.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ..core.errors import ConfigError, TokenLabelError
from ..core.log import logger, process_rank
from .heartbeat import BEAT_S, SILENT_BEATS, Heartbeat, first_to_fail

JOIN_S = 300.0  # imports from a busy file system; who has not come by then has failed
# A process that died is noticed by its heartbeat; this ends a training whose processes all live but wait for each other.
COLLECTIVE_S = 600.0
_LONGEST_PAUSE_S = 0.2
_PARTING_S = 10.0  # at the end; a process that does not say that it leaves has been told already to


@dataclass
class _Link:
    """The store of the processes, and how often this one has waited in it."""

    store: TCPStore
    heartbeat: Heartbeat
    waits: int = 0

    def wait(self, key: str) -> None:
        """Waits for a key as long as it takes; ends when another process has failed."""
        pause_s = 0.001
        while not self.store.check([key]):  # the store's own wait prints a line for each time that it was in vain
            if self.heartbeat.failed.is_set():
                raise SystemExit(1)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def part(self, rank: int, count: int) -> None:
        """Leaves the store for good; the main process, which may hold it, leaves last."""
        if rank:
            self.store.add("parted", 1)
            return
        deadline = time.monotonic() + _PARTING_S
        while self.store.add("parted", 0) < count - 1 and time.monotonic() < deadline:
            time.sleep(0.01)


@dataclass(frozen=True)
class Processes:
    """This process among those of its training.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number among those of its node, which is also its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    _link: _Link | None = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, the same on each; a new tensor."""
        if self._link is None:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on each; anything small that JSON holds, for whoever reaches the port may write there.

        The others wait for it as long as it takes.
        """
        if self._link is None:
            return value
        self._link.waits += 1
        key = f"word/{self._link.waits}"
        if self.is_main:
            self._link.store.set(key, json.dumps(value))
            return value
        self._link.wait(key)
        return json.loads(self._link.store.get(key))

    def barrier(self) -> None:
        """Waits until all are here, as long as it takes."""
        if self._link is None:
            return
        self._link.waits += 1
        key = f"barrier/{self._link.waits}"
        if self._link.store.add(f"{key}/count", 1) == self.count:
            self._link.store.set(key, "")
        self._link.wait(key)


ALONE = Processes()


@contextlib.contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Joins the training that this process was started for; ALONE where nothing says that there are others.

    An exception inside is told once: by the process in which it happened, with its traceback, or as one line for a
    TokenLabelError. The others end without a word of their own.

    Args:
        device_name: machine.device; NCCL carries what is on GPUs, gloo the rest.

    Raises:
        ConfigError: the others cannot be reached.
        SystemExit: this process or another one failed and has said so.
    """
    place = find_place()
    if place.count == 1:
        yield ALONE
        return
    rank, count = place.rank, place.count
    if rank:
        _quieten(rank)
    on_gpu = device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available())
    store = _open_store(rank, count)
    pulse = store.clone()  # of the heartbeat's thread alone
    pulse.set_timeout(timedelta(seconds=SILENT_BEATS * BEAT_S))  # a node without power does not even close a connection
    heartbeat = Heartbeat(pulse, rank, count)
    link = _Link(store, heartbeat)
    processes = replace(place, _link=link)
    processes.barrier()  # until each has a first beat
    heartbeat.start()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=PrefixStore("group", store), rank=rank, world_size=count,
            timeout=timedelta(seconds=COLLECTIVE_S),
        )  # fmt: skip
        yield processes
        heartbeat.leave()
        processes.barrier()
        dist.destroy_process_group()
        heartbeat.stop()
        link.part(rank, count)
    except Exception as error:  # noqa: BLE001 - said by one process, then all end
        _end(error, processes, link)
    finally:
        _leave_group()
        heartbeat.leave()
        heartbeat.stop()


def _leave_group() -> None:
    """Ends the group's own threads; one that still frees a tensor when Python has ended aborts the process (SIGABRT).

    A collective that another process will never join holds it up, so this one does not wait for ever.
    """
    if dist.is_initialized():
        leaving = threading.Thread(target=_destroy_group, daemon=True, name="leave group")
        leaving.start()
        leaving.join(_PARTING_S)


def _destroy_group() -> None:
    with contextlib.suppress(RuntimeError):  # the connection is what was lost
        dist.destroy_process_group()


def _end(error: Exception, processes: Processes, link: _Link) -> None:
    """Says an exception once among all processes and raises what ends this one."""
    if _is_lost_connection(error):
        # another one's end: give it, or what started it, the time to say why
        deadline = time.monotonic() + 2 * BEAT_S
        while time.monotonic() < deadline and not link.heartbeat.failed.is_set():
            time.sleep(0.1)
    first = first_to_fail(link.store, processes.rank)
    link.heartbeat.failed.set()
    if isinstance(error, TokenLabelError):
        if first:
            raise error
        raise SystemExit(getattr(error, "exit_code", 2))
    if first and _is_lost_connection(error):
        # the launcher names a process that was killed; one that lives but does not answer, nobody else can know of
        told = "TORCHELASTIC_RUN_ID" in os.environ and "imed out" not in str(error)
        logger.log(
            logging.INFO if told else logging.ERROR,
            "process %d of %d ends: it lost another one, which was killed or does not answer (%s)",
            processes.rank, processes.count, " ".join(str(error).split())[:200],
        )  # fmt: skip
    elif first:
        logger.error("process %d of %d failed:", processes.rank, processes.count, exc_info=error)
    raise SystemExit(1)


def _is_lost_connection(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo/", "NCCL", "Connection closed by peer"))
    )


def _quieten(rank: int) -> None:
    """Of the other processes, the terminal hears warnings only, and whose they are; each has a log file of its own."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            continue
        handler.setLevel(logging.WARNING)
        form = handler.formatter._fmt if handler.formatter else None
        handler.setFormatter(
            logging.Formatter((form or "%(message)s").replace("%(message)s", f"process {rank}: %(message)s"))
        )


def find_place() -> Processes:
    """This process's place among those of its training by what torchrun or srun left in the environment; joins nothing."""
    known = os.environ
    if "WORLD_SIZE" in known and "RANK" in known:
        return Processes(process_rank(), int(known["WORLD_SIZE"]), int(known.get("LOCAL_RANK", 0)))
    if (count := int(known.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        local_rank = int(known["SLURM_LOCALID"])
        if torch.cuda.device_count() == 1:  # --gpus-per-task=1: each sees its own as the first
            local_rank = 0
        return Processes(process_rank(), count, local_rank)
    return ALONE


def _open_store(rank: int, count: int) -> TCPStore:
    """Connects to the store of the agent that started this process, or to the main process's own."""
    host, port = _address()
    from_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            host, port, world_size=None, is_master=rank == 0 and not from_agent, timeout=timedelta(seconds=JOIN_S),
            wait_for_workers=False,
        )  # fmt: skip
    except dist.DistError as error:
        raise ConfigError(
            f"process {rank} of {count}: no connection to the main process at {host}:{port} "
            f"({str(error).splitlines()[0]}). Set MASTER_ADDR and MASTER_PORT to a host and port that all nodes reach."
        ) from None


def _address() -> tuple[str, int]:
    """Host and port of the store: MASTER_ADDR and MASTER_PORT, or the first host of the Slurm job and a port of its number."""
    known = os.environ
    host, job = known.get("MASTER_ADDR"), int(known.get("SLURM_JOB_ID", 0))
    if host is None and known.get("SLURM_JOB_NUM_NODES") == "1":
        host = "localhost"
    if host is None and shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", known.get("SLURM_JOB_NODELIST", "")]
        host = next(iter(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()), None)
    if host is None:
        raise ConfigError(
            "several processes, and MASTER_ADDR does not say where the main one is. Set it to the first node's name."
        )
    return host, int(known.get("MASTER_PORT", 20000 + (job * 16 + int(known.get("SLURM_STEP_ID", 0))) % 20000))
