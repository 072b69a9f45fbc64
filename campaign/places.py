"""Trials in which the folder cannot be written: a disk that fills up, a folder that is read-only. They mount, so need root."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .workplace import CannotRunError, Workplace, fresh_folder, require

PAGE = 4096  # bytes; a tmpfs counts in pages


@contextlib.contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[None]:
    """A file system of a few pages for as long as the block runs.

    Raises:
        CannotRunError: this user may not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*words: str) -> None:
    try:
        subprocess.run(["mount", *words], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotRunError(f"mount is not permitted here ({getattr(error, 'stderr', error)})") from None


def fill_disk(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """A disk too small by anything from nearly all to nearly nothing; then space is freed and the job runs again."""
    disk = fresh_folder(scratch)
    assert place.reference
    needed = pages_needed(place, disk)
    pages = random.Random(seed).randint(1, needed)
    labels = disk / "lite0-00000000"
    with small_disk(disk, pages):
        job = place.start(labels)
        said = (
            "the space sufficed"
            if job.wait() == 0
            else job.check_one_line("cannot be written", "No space left on device")
        )
        found = place.check_nothing_false(labels)
        require((job.wait() == 0) == (found == "finished"), f"exit code {job.wait()} and {found}")
        _mount("-o", f"remount,size={2**26}", str(disk))
        again = place.start(labels)
        require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
        digest = place.check_result(labels)
    return {"did": f"{pages} of about {needed} pages", "said": said.split(": ")[-1], "found": found, "digest": digest}


@functools.cache
def pages_needed(place: Workplace, disk: Path) -> int:
    """Most pages that an undisturbed job holds at a time."""
    most = 0
    with small_disk(disk, 2**14):
        job = place.start(disk / "lite0-00000000")
        while job.running:
            seen = os.statvfs(disk)
            most = max(most, seen.f_blocks - seen.f_bfree)
            time.sleep(0.001)
    require(job.wait() == 0, job.said())
    return most


def forbid_writing(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """A read-only file system: empty, with the parts of a killed job, or with its shard; then writable again."""
    rng = random.Random(seed)
    disk = fresh_folder(scratch)
    labels = disk / "lite0-00000000"
    moment_s = rng.uniform(0, 1.1) * place.duration_s if seed % 3 else None
    with small_disk(disk, 2**14):
        if moment_s is not None:
            job = place.start(labels)
            time.sleep(moment_s)
            job.signal(signal.SIGKILL)
            job.wait()
        _mount("-o", "remount,ro", str(disk))
        said = place.start(labels).check_one_line("cannot be written", "Read-only file system")
        found = place.check_nothing_false(labels)
        _mount("-o", "remount,rw", str(disk))
        again = place.start(labels)
        require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
        digest = place.check_result(labels)
    did = "empty" if moment_s is None else f"after a job killed at {moment_s:.3f} s"
    return {"did": did, "said": said.split(": ")[-1], "found": found, "digest": digest}
