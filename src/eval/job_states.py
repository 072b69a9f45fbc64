"""What a job's traces say of it: its marker, its lease, its log. Called by `status`; reads, and writes nothing.

A job runs where its lease's counter moves between two looks by this machine's own clock; times of files are never compared,
because the clocks of two nodes differ.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.files import LEASE_BEAT_S, Lease, read_json

State = Literal["done", "running", "stalled", "failed", "interrupted", "ready", "waiting", "unreadable"]
STATES: dict[State, str] = {
    "done": "finished",
    "running": "a job holds its lease and moves the counter",
    "stalled": "a job holds its lease, but the counter stood still: suspended, killed on another node, or a slow file system",
    "failed": "its log ends in an error",
    "interrupted": "it began and ended without an error: killed, or told to stop; the next call continues it",
    "ready": "nothing was begun, and all that it needs is there",
    "waiting": "nothing was begun, and something that it needs is not there yet",
    "unreadable": "its marker or result cannot be read",
}
LOOK_S = 1.25 * LEASE_BEAT_S  # between the first look and the last: a counter that moves has moved once
LOG_TAIL_BYTES = 16_384
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>[A-Z]+) (?P<text>.*)")


def look_at_leases(paths: Iterable[Path], look_s: float = LOOK_S) -> dict[Path, Literal["running", "stalled"]]:
    """Looks at leases until each has moved, at most for `look_s`; one whose owner is gone is left out."""
    first = {path: _held(path) for path in paths if not _is_left(path)}
    states: dict[Path, Literal["running", "stalled"]] = dict.fromkeys(first, "stalled")
    until = time.monotonic() + look_s
    pending = set(first)
    while pending and time.monotonic() < until:
        time.sleep(0.1)
        for path in list(pending):
            now = _held(path)
            if now is None:  # released meanwhile: its job has ended
                del states[path]
            elif now != first[path]:
                states[path] = "running"
            else:
                continue
            pending.remove(path)
    return states


def _is_left(path: Path) -> bool:
    """Whether a lease is gone, or its owner was a process of this host that is."""
    try:
        return not Lease(path).is_held()
    except OSError:  # may not be read: nobody can tell
        return False


def _held(path: Path) -> dict[str, Any] | None:
    """What a lease says; None where it is gone, {} while its owner is creating it or it cannot be read."""
    try:
        said = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


@dataclass(frozen=True)
class LogEnd:
    """How the last attempt in a log ended.

    Attributes:
        error: its last error, "" where it has none.
        last: its last line.
    """

    error: str
    last: str


def read_log_end(path: Path) -> LogEnd:
    """Reads the end of a job's log, from its last attempt's first line on.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    begins = [number for number, line in enumerate(lines) if " INFO command: " in line]
    lines = [line for line in lines[begins[-1] if begins else 0 :] if line.strip()]
    error = ""
    in_error = False
    for line in lines:
        found = _LINE.fullmatch(line)
        if found:
            in_error = found["level"] == "ERROR"
            error = found["text"] if in_error else error
        elif in_error:  # a traceback: its last line is the exception
            error = line.strip()
    return LogEnd(error, lines[-1] if lines else "")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epochs: done.
        remaining_s: until its last epoch's end at the present speed, without validations; None before the first epoch's end.
    """

    epochs: int
    remaining_s: float | None


def training_progress(lines: Iterable[Mapping[str, Any]], epochs: int) -> Progress:
    """Progress by the lines of metrics.jsonl.

    Args:
        lines: in their order.
        epochs: of the whole run.
    """
    ended: list[Mapping[str, Any]] = []
    step = 0
    for line in lines:
        if "step" in line:
            step = int(line["step"]) + 1
        else:
            ended.append(line)
            step = 0
    if not ended:
        return Progress(0, None)
    done = int(ended[-1]["epoch"]) + 1
    recent = [float(line["seconds"]) for line in ended[-3:]]
    begun = step / max(float(ended[-1].get("steps", 0)), 1.0)
    return Progress(done, max(epochs - done - begun, 0.0) * sum(recent) / len(recent))
