"""Trials in which the writer of a shard is killed, meets a second writer, or stands still until it is taken for dead."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from .workplace import Job, Workplace, fresh_folder, require


def kill_writer(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """kill -9 at a moment drawn uniformly from the undisturbed job's duration, then a rerun."""
    labels = fresh_folder(scratch) / "lite0-00000000"
    assert place.reference
    moment_s = random.Random(seed).uniform(0, place.duration_s)
    job = place.start(labels)
    time.sleep(moment_s)
    job.signal(signal.SIGKILL)
    job.wait()
    found = place.check_nothing_false(labels)
    assembling = any(labels.glob(".*.h5.*.tmp"))
    again = place.start(labels)
    require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
    return {
        "did": f"killed at {moment_s:.3f} s of {place.duration_s:.3f} s",
        "found": f"{found}, shard half written" if assembling else found,
        "digest": place.check_result(labels),
    }


def terminate_job(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """SIGTERM at a moment drawn uniformly from the undisturbed job's duration: a quick end, then a rerun that goes on."""
    labels = fresh_folder(scratch) / "lite0-00000000"
    assert place.reference
    moment_s = random.Random(seed).uniform(0, place.duration_s)
    job = place.start(labels)
    time.sleep(moment_s)
    job.signal(signal.SIGTERM)
    began = time.monotonic()
    code = job.wait()
    took_s = time.monotonic() - began
    require(took_s < 10, f"took {took_s:.1f} s to end")
    # before the annotator is built nothing waits to be saved, and the signal has its default effect
    require(code in (0, -signal.SIGTERM, 128 + signal.SIGTERM), f"exit code {code}: {job.said()[-300:]}")
    if code > 0:
        lines = job.said().strip().splitlines()
        require(len(lines) == 1 and "stopped by SIGTERM" in lines[0], f"not one line: {job.said()[-600:]}")
        require(not list(labels.glob("*.lease")), "the lease is left")
    found = place.check_nothing_false(labels)
    again = place.start(labels)
    require(again.wait() == 0, f"the rerun failed: {again.said()[-300:]}")
    labeled = photographs_labeled(job) + photographs_labeled(again)
    require(labeled == place.images or code < 0, f"{labeled} photographs labeled by two jobs, there are {place.images}")
    return {
        "did": f"SIGTERM at {moment_s:.3f} s of {place.duration_s:.3f} s, ended in {took_s:.3f} s with code {code}",
        "found": found,
        "digest": place.check_result(labels),
    }


def damage_part(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """A job is killed while labeling and one byte of one of its parts changes: named in a line, or harmless; never a label."""
    labels = fresh_folder(scratch) / "lite0-00000000"
    assert place.reference
    rng = random.Random(seed)
    job = place.start(labels)
    wanted, began = rng.randint(1, place.images // 2), time.monotonic()
    while len(parts := sorted(labels.glob("*.parts/part-*.h5"))) < wanted and job.running:
        require(time.monotonic() - began < 60, "the job writes no parts")
        time.sleep(0.001)
    job.signal(signal.SIGKILL)
    job.wait()
    require(bool(parts), "the job ended before it was killed")
    part = rng.choice(parts)
    spoiled = bytearray(part.read_bytes())
    offset = rng.randrange(len(spoiled))
    spoiled[offset] ^= 1 << rng.randrange(8)
    part.write_bytes(spoiled)
    again = place.start(labels)
    said = "harmless"
    if again.wait():
        said = again.check_one_line(str(part), "Delete it and run snakemake labels")
        place.check_nothing_false(labels)
        part.unlink()
        last = place.start(labels)
        require(last.wait() == 0, f"failed with the part gone: {last.said()[-300:]}")
    return {
        "did": f"a bit of byte {offset} of {part.name}, one of {len(parts)}",
        "said": said.replace(str(scratch), ""),
        "digest": place.check_result(labels),
    }


def start_two_writers(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """Two jobs for one shard: together (even seeds), or the second while the first is midway (odd seeds)."""
    labels = fresh_folder(scratch) / "lite0-00000000"
    assert place.reference
    delay_s = random.Random(seed).uniform(0, place.duration_s) if seed % 2 else 0.0
    jobs = [place.start(labels)]
    time.sleep(delay_s)
    jobs.append(place.start(labels))
    for job in jobs:
        require(job.wait() == 0, f"one of two jobs failed: {job.said()[-300:]}")
    labeled = sum(photographs_labeled(job) for job in jobs)
    require(labeled <= place.images, f"{labeled} photographs labeled by two jobs, there are {place.images}")
    return {"did": f"second job after {delay_s:.3f} s", "labeled": labeled, "digest": place.check_result(labels)}


def stop_writer(place: Workplace, seed: int, scratch: Path, stale_s: float | None = None) -> dict[str, Any]:
    """A job is stopped until another has taken over its lease, and goes on while that one works or after it has ended."""
    labels = fresh_folder(scratch) / "lite0-00000000"
    rng = random.Random(seed)
    stop_s = rng.uniform(0.2, 1) * place.duration_s
    first = place.start(labels, stale_s=stale_s)
    time.sleep(stop_s)
    first.signal(signal.SIGSTOP)
    found = place.check_nothing_false(labels)
    second = place.start(labels, stale_s=stale_s)
    # from the take-over on: while the second works (it starts with building the annotator), or after its end
    overlap_s = rng.uniform(0, 1.5) * place.duration_s
    began = time.monotonic()
    while second.running and not _has_taken_over(labels, first, second):
        require(time.monotonic() - began < 90, "the second job waits for ever")
        time.sleep(0.01)
    time.sleep(overlap_s)
    first.signal(signal.SIGCONT)
    codes = [first.wait(), second.wait()]
    require(0 in codes, f"both jobs failed: {first.said()[-200:]} {second.said()[-200:]}")
    for job, code in zip((first, second), codes, strict=True):
        if code:
            job.check_one_line("took over")
    again = place.start(labels, stale_s=stale_s)
    require(again.wait() == 0, f"a job after both failed: {again.said()[-300:]}")
    labeled = sum(photographs_labeled(job) for job in (first, second, again))
    require(labeled <= 2 * place.images, f"{labeled} photographs labeled, there are {place.images}")
    return {
        "did": f"stopped at {stop_s:.3f} s, went on {overlap_s:.3f} s after the take-over",
        "found": found,
        "exit_codes": codes,
        "labeled": labeled,
        "digest": place.check_result(labels),
    }


def _has_taken_over(labels: Path, first: Job, second: Job) -> bool:
    """Whether the lease names the second job."""
    for lease in labels.glob("*.lease"):
        try:
            return f'"pid": {second.pid}' in lease.read_text()
        except OSError:
            return False
    return False


def photographs_labeled(job: Job) -> int:
    """How many a job labeled, by its log."""
    return sum(map(int, re.findall(r"INFO part \d+: (\d+) photographs", job.log())))
