"""Measures one trained run on the validation split: accuracies, calibration, each class, speed, further test sets.

With --labels its tokens are compared with an annotator's maps. The classes' accuracies go to a CSV file beside the JSON document.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.files import write_json, write_text
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
    machine = read_machine(args.machine)
    from ..data.manifest import load_manifest

    manifest = load_manifest(args.manifest, "val")
    manifest.open_source(machine)
    trained = read_document(
        args.run_folder / "done.json",
        "the marker of the run to measure",
        "Give --run, the seed folder of a finished training.",
    )
    training = {"train_seconds": trained["seconds"], "train_unreadable": trained["unreadable"]}
    from .evaluation import evaluate_run
    from .measures import classes_csv

    started = time.monotonic()
    title = f"evaluate {args.run_folder}"
    with job_log(title, digest=digest_of(evaluation), seed=None, device=machine["device"]) as counts:
        found = evaluate_run(args.run_folder, evaluation, machine, manifest, args.labels)
        numbers = found.numbers
        counts["images"] = numbers["val_images"]
        log_numbers(numbers)
        write_text(classes_file(args.out), classes_csv(found.classes))  # first: who finds the document finds both
        write_json(
            args.out,
            {
                "digest": digest_of(evaluation),
                **numbers,
                **training,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    return 0


def classes_file(document: Path) -> Path:
    """Place of the classes' accuracies beside an evaluation's JSON document."""
    return document.with_suffix(".classes.csv")


def log_numbers(numbers: dict[str, Any]) -> None:
    """Says in the log what was measured."""
    logger.info(
        "top-1 %.2f %%, top-5 %.2f %%, calibration error %.2f %% of %d photographs",
        numbers["top1"], numbers["top5"], numbers["ece"], numbers["val_images"],
    )  # fmt: skip
    if "real_top1" in numbers:
        logger.info("%.2f %% by the reassessed labels of %d photographs", numbers["real_top1"], numbers["real_images"])
    for name, found in numbers.get("test_sets", {}).items():
        logger.info("%s: top-1 %.2f %% of %d photographs", name, found["top1"], found["images"])
    if "token_agreement" in numbers:
        logger.info("%.2f %% of the tokens agree with the annotator", numbers["token_agreement"])
    if "images_per_s" in numbers:
        logger.info("%.1f images/s of the forward pass alone", numbers["images_per_s"])
