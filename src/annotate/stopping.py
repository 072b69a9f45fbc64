"""Ends a job within seconds of SIGTERM, SIGINT or SIGUSR1 with its finished work on disk, even in the midst of a long forward pass.

Python runs a signal's handler only between two of its own instructions; a pass of a large network can take longer than a
scheduler waits before it kills. So the signal's number comes through a pipe to a thread that does the rest. Used by `shard_job`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def stopping_by_signal(finish: Callable[[str], str]) -> Iterator[None]:
    """Within the block a signal ends the process, after `finish` has saved what can be saved.

    Args:
        finish: given the signal's name, saves, and returns the line that the user shall read; called in a thread while the
            main thread may still compute. The process then ends with 128 + the signal's number, whatever the main thread does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the business of whoever runs this in a thread
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
    wakeup = signal.set_wakeup_fd(writing)
    watcher = threading.Thread(target=_watch, args=(reading, finish), name="signals", daemon=True)
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


def _watch(reading: int, finish: Callable[[str], str]) -> None:
    while True:
        number = os.read(reading, 1)[0]
        if not number:
            return
        if number not in STOPPING:
            continue
        try:
            line = finish(signal.Signals(number).name)
        except Exception as error:  # noqa: BLE001 - the process ends here; its last line says why
            line = f"stopped by {signal.Signals(number).name}; the last part could not be saved: {' '.join(str(error).split())}"
        print(f"error: {line}", file=sys.stderr, flush=True)  # noqa: T201 - logging may be held by the main thread
        os._exit(128 + number)
