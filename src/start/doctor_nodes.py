"""What compute nodes see: a short job in each partition looks there and writes what it finds into the results folder.

Called by `tokenlabel doctor --submit`, and, as the job, by `tokenlabel doctor --node FILE`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import OutputError, TokenLabelError, one_line
from ..core.files import read_json, write_json
from ..core.overlays import read_configuration, study_files
from ..core.study import Study
from .doctor_findings import Finding, ask
from .doctor_profile import Profile
from .doctor_slurm import longest_jobs

MINUTES = 10
MEM_MB = 3000
POLL_S = 0.5
CLOCK_S = 5.0
FOLDER = "results/doctor"


def look_at_nodes(profile: Profile, study: Study, args: argparse.Namespace) -> Iterator[Finding]:
    """Submits the jobs, waits for what they write, and yields it.

    Args:
        profile: read.
        study: planned.
        args: of the command: directory, configfile, timeout.
    """
    folder = (args.directory / FOLDER / f"{socket.gethostname()}-{os.getpid()}").resolve()
    folder.mkdir(parents=True)
    rules = list(longest_jobs(study))
    waiting: dict[str, tuple[str, Path]] = {}  # partition -> job, file
    try:
        for partition in profile.partitions:
            here = profile.rules_in(partition, rules)
            gpus = max((profile.gpus_of(rule, study.config.machine) for rule in here), default=0)
            answer = folder / f"{partition}.json"
            wanted = _options(profile, here[0] if here else "", min(gpus, 1))
            said = ask(_command(partition, wanted, answer, gpus=min(gpus, 1), args=args))
            if said.code != 0:
                yield Finding(
                    "fail",
                    f"node {partition}",
                    f"sbatch refuses the job ({said.error})",
                    f"Correct {profile.path}; sbatch says what it lacks",
                )
            else:
                waiting[partition] = (said.text.strip().split(";")[0], answer)
        yield from _answers(waiting, args.timeout)
    finally:
        for job, _ in waiting.values():
            ask(["scancel", job])
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _options(profile: Profile, rule: str, gpus: int) -> list[str]:
    """What sbatch is told of a job of the rule besides its partition, as the executor tells it."""
    options = []
    for option, key in (("--account", "slurm_account"), ("--qos", "qos"), ("--constraint", "constraint")):
        value = profile.of_rule(rule, key) or (profile.qos if key == "qos" else None)
        options += [option, str(value)] if value else []
    if gpus:
        options += ["--gpus", ":".join(str(part) for part in (profile.of_rule(rule, "gpu_model"), gpus) if part)]
    return options


def _command(partition: str, wanted: list[str], answer: Path, *, gpus: int, args: argparse.Namespace) -> list[str]:
    here = [
        sys.executable,
        "-m",
        "tokenlabel",
        "doctor",
        "--node",
        str(answer),
        "--directory",
        str(args.directory.resolve()),
        "--gpus",
        str(gpus),
    ]
    if args.configfile:
        here += ["--configfile", *(str(path.resolve()) for path in args.configfile)]
    command = [
        "sbatch",
        "--parsable",
        "--job-name",
        "tokenlabel-doctor",
        "--partition",
        partition,
        "--time",
        str(MINUTES),
        "--mem",
        str(MEM_MB),
        "--output",
        str(answer.with_suffix(".log")),
        "--chdir",
        str(Path.cwd()),
    ]
    return [*command, *wanted, "--wrap", f"exec {shlex.join(here)}"]


def _answers(waiting: dict[str, tuple[str, Path]], timeout_s: float) -> Iterator[Finding]:
    """Yields each partition's findings as they come, and what became of jobs that wrote none."""
    deadline = time.monotonic() + timeout_s
    left = dict(waiting)
    while left:
        for partition, (job, answer) in list(left.items()):
            area = f"node {partition}"
            if answer.exists():
                del left[partition]
                yield from _read(answer, area)
                continue
            state, reason = _state_of(job)
            late = time.monotonic() > deadline
            if not late and state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "unknown"):
                continue
            del left[partition]
            if answer.exists():  # written between the two looks
                yield from _read(answer, area)
            elif state in ("PENDING", "CONFIGURING"):
                yield Finding(
                    "warn",
                    area,
                    f"job {job} did not start within {timeout_s:g} s ({reason})",
                    "Try again with a longer --timeout; squeue --start estimates when",
                )
            elif state == "COMPLETED" and not late:
                yield Finding(
                    "fail",
                    area,
                    f"job {job} ended and {answer} is not visible here",
                    "Nodes and this machine must share the results folder",
                )
            else:
                log = answer.with_suffix(".log")
                last = (
                    (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
                    if log.exists()
                    else "no log"
                )
                yield Finding(
                    "fail",
                    area,
                    f"job {job} is {state} without an answer ({last})",
                    "Does the node see this folder and its Python?",
                )
        time.sleep(POLL_S)


def _state_of(job: str) -> tuple[str, str]:
    said = ask(["squeue", "-h", "-j", job, "-t", "all", "-o", "%T|%r"]).text.strip()
    state, _, reason = said.partition("|")
    return state or "unknown", reason


def _read(answer: Path, area: str) -> Iterator[Finding]:
    now = time.time()
    said: dict[str, Any] = read_json(answer)
    yield Finding("ok", area, f"{said['host']}: Python {said['python']}, sees the results folder")
    if said["version"] != __version__:
        yield Finding(
            "fail",
            area,
            f"{said['host']}: tokenlabel {said['version']} there, {__version__} here",
            "Use one environment that both see",
        )
    difference_s = abs(now - said["time"])  # the way to here is in it, half a second or so
    if difference_s > CLOCK_S:
        yield Finding(
            "warn",
            area,
            f"{said['host']}: its clock differs by {difference_s:.0f} s",
            "Nothing rests on it; logs will confuse",
        )
    for finding in said["findings"]:
        if finding["status"] != "ok" or finding["area"] in ("data", "gpu"):
            yield Finding(finding["status"], area, f"{said['host']}: {finding['found']}", finding["remedy"])


def look_from_a_job(answer: Path, directory: Path, overlays: Sequence[Path], gpus: int) -> None:
    """Looks at this node and writes what it finds.

    Args:
        answer: file to write.
        directory: folder that holds results/.
        overlays: of the study.
        gpus: that the job was given.

    Raises:
        OutputError: the results folder is not there.
    """
    from .doctor_files import look_at_files
    from .doctor_machine import look_at_gpus
    from .doctor_study import look_at_data, look_at_weights

    if not answer.parent.is_dir():
        raise OutputError(f"{answer.parent}: this node does not see the folder that the submitting machine made there.")
    findings = []
    try:
        study = Study.plan(read_configuration(study_files(overlays)))
        if gpus or study.config.machine.device == "cuda":
            findings += list(
                look_at_gpus(
                    "cuda" if study.config.machine.device == "auto" else study.config.machine.device, needed=True
                )
            )
        findings += list(look_at_data(study, needed=True))
        if gpus:
            findings += list(look_at_weights(study, digests=False))
    except (TokenLabelError, OSError) as error:
        reason = one_line(error) if isinstance(error, TokenLabelError) else str(error)
        findings.append(Finding("fail", "config", reason))
    findings += list(look_at_files(directory))
    write_json(
        answer,
        {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "version": __version__,
            "time": time.time(),
            "findings": [finding.as_json() for finding in findings],
        },
    )
