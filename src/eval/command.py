"""Measures top-1 and top-5 of one trained run on the validation split, and its tokens against an annotator's maps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..core.command import add_job_arguments, read_document
from ..core.files import read_json, write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an evaluation job."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--run", type=Path, required=True, dest="run_folder", help="seed folder of the run to measure")
    parser.add_argument("--labels", type=Path, default=None, help="folder of an annotator's maps of that split")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Measures and writes the result."""
    evaluation = read_document(args.spec, "the evaluation's spec")
    machine = read_document(args.machine, "the machine settings")
    from ..data.manifest import load_manifest

    manifest = load_manifest(args.manifest, "val")
    manifest.open_source(machine)
    from .evaluation import evaluate_run

    started = time.monotonic()
    title = f"evaluate {args.run_folder}"
    with job_log(title, digest=digest_of(evaluation), seed=None, device=machine["device"]) as counts:
        result = evaluate_run(args.run_folder, evaluation, machine, manifest, args.labels)
        counts["images"] = result["val_images"]
        logger.info(
            "top-1 %.2f %%, top-5 %.2f %% of %d photographs", result["top1"], result["top5"], result["val_images"]
        )
        if "token_agreement" in result:
            logger.info("%.2f %% of the tokens agree with the annotator", result["token_agreement"])
        trained = read_json(args.run_folder / "done.json")
        write_json(
            args.out,
            {
                "digest": digest_of(evaluation),
                **result,
                "train_seconds": trained["seconds"],
                "train_unreadable": trained["unreadable"],
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    return 0
