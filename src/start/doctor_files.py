"""The results folder: room, inodes, and what the jobs rely on of its file system. Called by `tokenlabel doctor`, here and on nodes.

Relied on: a file made with O_EXCL is made once; a rename within a folder replaces a file at once, so that a reader finds the
old one or the new one; fsync returns; another process sees both. Never relied on: times of files, clocks of two machines, locks
of the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..core.plan import plan_study
from ..core.study import Study
from .doctor_findings import Finding

AREA = "files"
RENAMES = 200
SLOW_FSYNC_S = 1.0
FILES_A_JOB = 12  # shard or weights, marker, spec, log, benchmark, metrics, Snakemake's own record: rounded up
READER_TIMEOUT_S = 60.0
ROOM = 1.2  # of the estimate
READER = """
import os, sys
folder = sys.argv[1]
try:
    os.close(os.open(f"{folder}/exclusive", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    print("exclusive made twice")
except FileExistsError:
    pass
open(f"{folder}/reading", "w").close()
torn = missing = 0
while not os.path.exists(f"{folder}/stop"):
    try:
        with open(f"{folder}/renamed") as file:
            text = file.read()
        torn += len(text) != 4096 or len(set(text)) != 1
    except FileNotFoundError:
        missing += 1
print(f"torn {torn}" if torn else "", f"missing {missing}" if missing else "")
"""
HDF5 = """
import sys, h5py
def probe(**options):
    with h5py.File(sys.argv[1], "w", **options) as file:
        file["x"] = [1]
    with h5py.File(sys.argv[1], "r", **options) as file:
        assert file["x"][0] == 1
try:
    probe()
except OSError as error:
    probe(locking=False)
    print(error)
"""


def look_at_room(folder: Path, study: Study | None) -> Iterator[Finding]:
    """Yields whether free bytes and inodes suffice for what is still to be made by results/plan.csv's estimate."""
    place = _nearest(folder)
    try:
        found = os.statvfs(place)
    except OSError as error:
        yield Finding("fail", "disk", f"{place}: cannot be looked at ({error.strerror})", "Is the file system mounted?")
        return
    free_gb = found.f_bavail * found.f_frsize / 1e9
    if study is None:
        yield Finding("ok", "disk", f"{place}: {free_gb:,.1f} GB free")
        return
    total = plan_study(study, folder).rows[-1]
    share = total.jobs_to_do / max(1, total.jobs)
    needed_gb = (total.labels_gb + total.weights_gb) * share + total.checkpoints_gb * (share > 0)
    said = f"{place}: {free_gb:,.1f} GB free, about {needed_gb:,.2f} GB to come for {total.jobs_to_do:,} jobs"
    remedy = "Free space, or give snakemake --directory on a larger file system; a quota may allow less than is free"
    if free_gb < needed_gb:
        yield Finding("fail", "disk", said, remedy)
    elif free_gb < ROOM * needed_gb:
        yield Finding("warn", "disk", said, remedy)
    else:
        yield Finding("ok", "disk", said)
    files = FILES_A_JOB * total.jobs_to_do
    if found.f_files and found.f_favail < files:  # file systems without a fixed number of inodes report 0
        yield Finding("fail", "disk", f"{place}: {found.f_favail:,} inodes free, about {files:,} files to come", remedy)


def look_at_files(folder: Path) -> Iterator[Finding]:
    """Yields what the file system of the results folder does; makes a folder of its own there and removes it."""
    place = _nearest(folder)
    probe = place / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError as error:
        yield Finding(
            "fail",
            AREA,
            f"{place}: cannot be written ({error.strerror})",
            "Free space on it"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Ask for permission to write there, or give another --directory",
        )
        return
    try:
        yield from _try_files(place, probe)
    except OSError as error:
        remedy = (
            "Free space on it, or raise the quota"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Choose another file system"
        )
        yield Finding("fail", AREA, f"{place}: writing fails ({error.strerror})", remedy)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    yield from _look_at_group(place)


def _try_files(place: Path, probe: Path) -> Iterator[Finding]:
    descriptor = os.open(probe / "exclusive", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        os.write(descriptor, b"x" * 65536)
        started = time.monotonic()
        os.fsync(descriptor)
        fsync_s = time.monotonic() - started
    finally:
        os.close(descriptor)
    problem = _race(probe)
    if problem:
        yield Finding(
            "fail",
            AREA,
            f"{place}: {problem}",
            "Two jobs could write one output: put results on a file system that keeps POSIX's rules",
        )
    else:
        yield Finding("ok", AREA, f"{place}: O_EXCL, rename and fsync as relied on, also as another process sees it")
    if fsync_s > SLOW_FSYNC_S:
        yield Finding(
            "warn",
            AREA,
            f"{place}: fsync of 64 kB took {fsync_s:.1f} s",
            "Checkpoints will wait for it; ask for a faster file system",
        )
    yield from _look_at_hdf5(place, probe)


def _look_at_hdf5(place: Path, probe: Path) -> Iterator[Finding]:
    """Yields whether HDF5 files open there; where jobs are made to lock them is said also of a file system with locks."""
    forced = os.environ.get("HDF5_USE_FILE_LOCKING", "") in ("TRUE", "1")  # stronger than h5py's locking=False
    if forced:
        yield Finding(
            "warn",
            AREA,
            "HDF5_USE_FILE_LOCKING in the environment: HDF5 locks every shard that it reads, and fails where it cannot",
            "Unset it, or export HDF5_USE_FILE_LOCKING=FALSE, in the shell that starts snakemake",
        )
    done = subprocess.run(
        [sys.executable, "-c", HDF5, str(probe / "probe.h5")],
        capture_output=True,
        text=True,
        timeout=READER_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding(
            "fail",
            AREA,
            f"{place}: HDF5 cannot write ({reason})",
            "Unset HDF5_USE_FILE_LOCKING" if forced else "pip install -r requirements.lock, or another file system",
        )
    elif done.stdout:
        yield Finding(
            "warn",
            AREA,
            f"{place}: HDF5 cannot lock its files ({' '.join(done.stdout.split())})",
            "tokenlabel asks for no lock; for other readers of the shards export HDF5_USE_FILE_LOCKING=FALSE",
        )
    else:
        yield Finding("ok", AREA, f"{place}: HDF5 files open, also with its locks")


def _race(probe: Path) -> str:
    """What another process finds wrong while this one renames over a file that it reads; empty: nothing."""
    _put(probe, "a")
    with subprocess.Popen([sys.executable, "-c", READER, str(probe)], stdout=subprocess.PIPE, text=True) as reader:
        try:
            deadline = time.monotonic() + READER_TIMEOUT_S
            while not (probe / "reading").exists() and time.monotonic() < deadline and reader.poll() is None:
                time.sleep(0.01)
            for count in range(RENAMES):
                _put(probe, "ab"[count % 2])
        finally:
            with contextlib.suppress(OSError):
                (probe / "stop").touch()
            try:
                said, _ = reader.communicate(timeout=READER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                reader.kill()
                return "another process does not see a file that this one made"
    return " ".join(said.split())


def _put(probe: Path, letter: str) -> None:
    """Writes a file and renames it over the one that the other process reads."""
    new = probe / "new"
    new.write_text(letter * 4096)
    os.replace(new, probe / "renamed")  # noqa: PTH105 - what is tried here


def _look_at_group(place: Path) -> Iterator[Finding]:
    found = place.stat()
    mask = os.umask(0)
    os.umask(mask)
    shared = bool(found.st_mode & stat.S_IWGRP) and bool(found.st_mode & stat.S_ISGID)
    if shared and mask & stat.S_IWGRP:
        yield Finding(
            "warn",
            AREA,
            f"{place}: the group may write, but umask {mask:03o} keeps it from files that you make",
            "umask 002 before snakemake; see docs/shared-folders.md",
        )
    elif found.st_uid != os.getuid() and not shared:
        yield Finding(
            "warn",
            AREA,
            f"{place}: another user's folder that is not group-writable with setgid",
            "chmod g+ws; see docs/shared-folders.md",
        )
    else:
        yield Finding("ok", AREA, f"{place}: {'shared with its group' if shared else 'yours alone'}, umask {mask:03o}")


def _nearest(folder: Path) -> Path:
    """results/ in the folder, or the nearest folder above it that exists."""
    place = folder.resolve() / "results"
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place
