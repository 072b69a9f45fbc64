"""How the processes of a training hear of each other's end, even while they wait for one another on the GPU.

Guarantees that a process which failed, was killed or lost its node takes the others down within a minute, and that the
first to fail is the one that speaks. Called by `processes`; the store is torchrun's, or the main process's under srun.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from ..core.log import logger

BEAT_S = 2.0
SILENT_BEATS = 15  # counted in own beats, so that a suspended job wakes up without a false alarm
GRACE_S = 30.0  # a process may write the last checkpoint before another one's failure ends it


class Heartbeat:
    """Shows that this process lives and ends it when another one does not.

    Args:
        store: a connection of its own, for the thread.
        rank: of this process.
        count: of all.
        end: ends this process with an exit code, whatever its main thread waits for.
    """

    def __init__(self, store: Store, rank: int, count: int, end: Callable[[int], None] = os._exit) -> None:
        self._store, self._rank, self._count, self._end = store, rank, count, end
        self._stop = threading.Event()
        self._leaving = False
        self.failed = threading.Event()  # of any process, this one included
        store.set(f"beat/{rank}", "0")
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        """Begins; every process has made its own by then."""
        self._thread.start()

    def leave(self) -> None:
        """This process is done: it still shows that it lives and minds nobody's end any more."""
        self._leaving = True

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        beats = {rank: b"" for rank in range(self._count) if rank != self._rank}
        still = dict.fromkeys(beats, 0)
        count, failed_at, unheard = 0, 0.0, 0
        while not self._stop.wait(BEAT_S):
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", str(count))
                for rank in beats:
                    beat = self._store.get(f"beat/{rank}")
                    still[rank] = still[rank] + 1 if beat == beats[rank] else 0
                    beats[rank] = beat
                if self._store.check(["failure"]):
                    self.failed.set()
                unheard = 0
            except RuntimeError:  # torch's DistError: whoever keeps the store is gone
                unheard += 1
            if self._leaving:
                continue
            if self.failed.is_set():
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > GRACE_S:
                    self._end(1)
                continue
            silent = [rank for rank, beats_missed in still.items() if beats_missed >= SILENT_BEATS]
            if silent or unheard >= 3:
                who = f"process {silent[0]} of {self._count}" if silent else "the main process or its launcher"
                if unheard or first_to_fail(self._store, self._rank):
                    logger.error(
                        "process %d of %d ends: nothing was heard of %s for %.0f s; it was killed, stopped, or lost its node.",
                        self._rank, self._count, who, BEAT_S * (unheard or SILENT_BEATS),
                    )  # fmt: skip
                self._end(1)


def first_to_fail(store: Store, rank: int) -> bool:
    """Whether this process is the first one to say that it failed; a store that is gone cannot tell, so yes."""
    try:
        return bool(store.compare_set("failure", "", str(rank)) == str(rank).encode())
    except RuntimeError:
        return True
