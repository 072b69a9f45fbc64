"""Measures one published checkpoint on the validation split, as a trained run is measured."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.files import write_json, write_text
from ..core.identity import digest_of
from ..core.log import job_log
from .command import classes_file, log_numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a published checkpoint's evaluation."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--name", required=True, help="of the checkpoint in the catalogue")
    parser.add_argument("--source", required=True, help="where its file can be fetched, for who has not got it")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Measures and writes the result."""
    spec = read_document(args.spec, "the evaluation's spec")
    machine = read_machine(args.machine)
    from ..data.manifest import load_manifest

    manifest = load_manifest(args.manifest, "val")
    manifest.open_source(machine)
    from .evaluation import evaluate_published
    from .measures import classes_csv

    started = time.monotonic()
    title = f"evaluate published {args.name}"
    with job_log(title, digest=digest_of(spec), seed=None, device=machine["device"]) as counts:
        found = evaluate_published(args.name, spec, machine, manifest, args.source)
        counts["images"] = found.numbers["val_images"]
        log_numbers(found.numbers)
        write_text(classes_file(args.out), classes_csv(found.classes))
        seconds = round(time.monotonic() - started, 3)
        write_json(args.out, {"digest": digest_of(spec), **found.numbers, "seconds": seconds})
    return 0
