"""Stage 2 and fine-tuning: trains one run of the study, or continues it where it was interrupted.

SIGTERM, SIGINT, SIGUSR1 and the deadline save a checkpoint first. Exit codes: 0 done, or a leg that hands over at its deadline; 2 a
mistake or circumstance to mend; 128 + the signal's number; 75 the deadline. After the last two the same command continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..core.command import read_document, read_machine
from ..core.identity import digest_of
from ..core.log import job_log
from ..data.manifest import Manifest, load_manifest
from ..engine.run_arguments import add_run_arguments, leg_of, read_first

SECTIONS = ("dataset", "model", "model.settings", "recipe")  # of a run's spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a training job."""
    add_run_arguments(parser, start="seed folder of the run that fine-tuning starts from")
    parser.add_argument("--labels", type=Path, default=None, help="folder of the annotator's label shards")
    parser.add_argument(
        "--eval-crop", type=float, default=None,
        help="share of the shorter side that evaluation keeps; recorded in config.json (default: the validations' own)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains and writes the marker."""
    spec, machine, manifests = read_first(args, _read)
    from .job import train_run

    title = f"{spec['stage']} {args.done.parent.parent.name}"
    with job_log(title, digest=digest_of(spec), seed=args.seed, device=machine["device"]) as counts:
        marker = train_run(
            spec, machine, manifests=manifests, labels_folder=args.labels, start_folder=args.start,
            eval_crop=args.eval_crop, **leg_of(args),
        )  # fmt: skip
        counts["images"] = marker.get("images", 0)
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Manifest]]:
    """Spec, machine and manifests; what is wrong with them is the first thing that the job says, before torch loads."""
    spec, machine = read_document(args.spec, "the run's spec", sections=SECTIONS), read_machine(args.machine)
    manifests = {split: load_manifest(args.manifest, split) for split in ("train", "val")}
    manifests["train"].open_source(machine)
    return spec, machine, manifests
