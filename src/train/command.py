"""Stage 2 and fine-tuning: trains one run of the study, or continues it where it was interrupted.

SIGTERM, SIGINT, SIGUSR1 and the deadline save a checkpoint first. Exit codes: 0 done, or a leg that hands over at its deadline; 2 a
mistake or circumstance to mend; 128 + the signal's number; 75 the deadline. After the last two the same command continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.errors import ConfigError, TokenLabelError
from ..core.identity import digest_of
from ..core.log import job_log
from ..data.manifest import Manifest, load_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a training job."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--labels", type=Path, default=None, help="folder of the annotator's label shards")
    parser.add_argument("--start", type=Path, default=None, help="seed folder of the run that fine-tuning starts from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: %(default)s)")
    parser.add_argument(
        "--eval-crop", type=float, default=None,
        help="share of the shorter side that evaluation keeps; recorded in config.json (default: the validations' own)",
    )  # fmt: skip
    parser.add_argument("--done", type=Path, required=True, help="marker to write; weights and metrics lie beside it")
    parser.add_argument(
        "--until-epoch", type=int, default=None, metavar="N",
        help="a leg: end when N epochs of the run are done, and leave the checkpoint (default: the whole run)",
    )  # fmt: skip
    parser.add_argument(
        "--legs",
        type=int,
        default=1,
        metavar="N",
        help="of how many legs the run consists, for its marker (default: %(default)s)",
    )
    parser.add_argument(
        "--requeue", action="store_true",
        help="at the deadline put this Slurm job back into the queue, to continue with the same limits (default: end with 75)",
    )  # fmt: skip
    parser.add_argument(
        "--deadline", type=float, default=None, metavar="SECONDS",
        help="from now; the job saves its state and ends with exit code 75 before it (default: Slurm's end time, if any)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-changed", action="store_true",
        help="continue a run that another spec began; the marker lists what differs (default: refuse, with the list)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains and writes the marker."""
    try:
        spec, machine, manifests = _read(args)
    except TokenLabelError:
        from ..engine.processes import join_processes

        with join_processes("cpu"):  # so that of several processes one says it
            raise
    from .job import train_run

    title = f"{spec['stage']} {args.done.parent.parent.name}"
    with job_log(title, digest=digest_of(spec), seed=args.seed, device=machine["device"]) as counts:
        marker = train_run(
            spec, machine, manifests=manifests, labels_folder=args.labels, start_folder=args.start, seed=args.seed,
            done=args.done, eval_crop=args.eval_crop, until_epoch=args.until_epoch, legs=args.legs, deadline_s=args.deadline,
            requeue=args.requeue, allow_changed=args.allow_changed,
        )  # fmt: skip
        counts["images"] = marker.get("images", 0)
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Manifest]]:
    """Spec, machine and manifests; what is wrong with them is the first thing that the job says, before torch loads."""
    if args.until_epoch is not None and args.until_epoch < 1:
        raise ConfigError(f"--until-epoch {args.until_epoch}: a leg trains at least one epoch. Give 1 or more.")
    spec, machine = read_document(args.spec, "the run's spec"), read_machine(args.machine)
    manifests = {split: load_manifest(args.manifest, split) for split in ("train", "val")}
    manifests["train"].open_source(machine)
    return spec, machine, manifests
