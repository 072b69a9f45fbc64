"""Stage 2 and fine-tuning: trains one run of the study, or continues it where it was interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import add_job_arguments, read_document
from ..core.identity import digest_of
from ..core.log import job_log


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


def run(args: argparse.Namespace) -> int:
    """Trains and writes the marker."""
    spec = read_document(args.spec, "the run's spec")
    machine = read_document(args.machine, "the machine settings")
    from ..data.manifest import load_manifest

    manifests = {split: load_manifest(args.manifest, split) for split in ("train", "val")}
    manifests["train"].open_source(machine)  # a missing data root shall be the first thing the job says
    from .job import train_run

    title = f"{spec['stage']} {args.done.parent.parent.name}"
    with job_log(title, digest=digest_of(spec), seed=args.seed, device=machine["device"]) as counts:
        marker = train_run(
            spec, machine, manifests=manifests, labels_folder=args.labels, start_folder=args.start, seed=args.seed,
            done=args.done, eval_crop=args.eval_crop,
        )  # fmt: skip
        counts["images"] = marker["images"]
    return 0
