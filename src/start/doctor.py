"""Looks at everything that a study needs before it starts: Slurm, GPUs, Python, data, weights, disk, file system.

One line for each thing: ok, warn (works, or cannot be told here) or fail, what is wrong, how to mend it. Exit code 1 where
something fails. Changes nothing; --submit sends one short job to each partition, which looks there. Run it in the checkout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import TokenLabelError, one_line
from ..core.overlays import CHECKOUT, read_configuration, study_files
from ..core.placement import unused_nodes_of
from ..core.study import Study
from .doctor_findings import Finding

LOCK = "requirements.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="folder that holds results/, as for snakemake (default: here)"
    )
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], metavar="FILE", help="overlays of the study, as for snakemake"
    )
    parser.add_argument("--profile", default=None, help="profile whose Slurm jobs are to run, as for snakemake: slurm")
    parser.add_argument(
        "--submit", action="store_true", help="send a short job to each partition of the profile, which looks there"
    )
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="SECONDS", help="that --submit waits (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects with status, area, found, remedy")
    parser.add_argument(
        "--node", type=Path, default=None, metavar="FILE", help="what a job of --submit runs: looks here, writes FILE"
    )
    parser.add_argument("--gpus", type=int, default=0, help="with --node: GPUs that the job was given")


def run(args: argparse.Namespace) -> int:
    """Looks, prints, and says by the exit code whether anything fails."""
    if args.node is not None:
        from .doctor_nodes import look_from_a_job

        look_from_a_job(args.node, args.directory, args.configfile, args.gpus)
        return 0
    failed = False
    findings = []
    for finding in look_around(args):
        failed = failed or finding.status == "fail"
        findings.append(finding)
        if not args.json:
            print(finding.line(), flush=True)  # noqa: T201 - what the command is for
    if args.json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1))  # noqa: T201
    return int(failed)


def look_around(args: argparse.Namespace) -> Iterator[Finding]:
    """Yields all findings, each as soon as it is known."""
    from .doctor_files import look_at_files, look_at_room
    from .doctor_machine import look_at_gpus, look_at_python
    from .doctor_profile import read_profile
    from .doctor_slurm import look_at_slurm
    from .doctor_study import look_at_data, look_at_scenes, look_at_weights

    study = profile = None
    try:
        study = Study.plan(read_configuration(study_files(args.configfile)))
        yield Finding(
            "ok", "config", f"{len(study.selected_tables)} experiments, {len(study.selected_labels)} annotators"
        )
        for key, pixels in unused_nodes_of(study.config.machine, study.runs.values()).items():
            yield Finding(
                "warn",
                "config",
                f"machine.nodes_of {key}: no run of this study has it; runs of that model are at "
                f"{', '.join(map(str, pixels)) or 'none'} px",
                "Correct the pixels, or leave it for another study",
            )
    except TokenLabelError as error:
        yield Finding("fail", "config", one_line(error), "Correct it; snakemake -n says the same")
    yield from look_at_python(CHECKOUT / LOCK)
    if args.profile is not None:
        try:
            profile = read_profile(args.profile)
        except TokenLabelError as error:
            yield Finding("fail", "slurm", one_line(error))
    here = args.profile is None  # jobs run on this machine
    if profile is not None:
        yield from look_at_slurm(profile, study)
    yield from look_at_gpus(study.config.machine.device if study else "auto", needed=here)
    if study is not None:
        yield from _guarded("data", look_at_data(study, needed=here))
        yield from _guarded("scenes", look_at_scenes(study, needed=here))
        yield from look_at_weights(study)
    yield from _guarded("disk", look_at_room(args.directory, study))
    yield from look_at_files(args.directory)
    if args.submit:
        from .doctor_nodes import look_at_nodes

        if profile is None or study is None:
            yield Finding("fail", "slurm", "--submit needs a profile and a legal configuration", "Give --profile slurm")
        else:
            yield from look_at_nodes(profile, study, args)


def _guarded(area: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, and as the last one what our own code refuses to read."""
    try:
        yield from findings
    except (TokenLabelError, OSError) as error:
        yield Finding("fail", area, one_line(error) if isinstance(error, TokenLabelError) else str(error))
