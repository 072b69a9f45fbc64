"""Compares a seeded sample of finished labels with their annotator run on random crops, and with the photographs' own classes.

By hand: `tokenlabel annotate fidelity results/labels/lite0-1a2b3c4d --machine results/machine.json --manifest results/data/NAME
--images 100 --out fidelity.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document, read_machine
from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a measurement."""
    parser.add_argument(
        "labels", type=Path, help="folder of label shards, with the spec.json that the workflow left there"
    )
    parser.add_argument("--machine", type=Path, required=True, help="machine.json: roots, device")
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--annotator", type=Path, default=None, help="folder of an annotator adapted to the data set")
    parser.add_argument("--split", default="train", help="labeled split (default: %(default)s)")
    parser.add_argument("--images", type=int, default=250, help="photographs at most (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=4, help="random crops of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sample and crops (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the measures of one annotator's labels.

    Raises:
        ConfigError: nothing to measure is asked for.
        DataError: spec, manifest or photographs are missing.
        LabelError: the labels are missing, damaged, of other photographs or of other weights.
    """
    for name, least in (("images", 1), ("crops", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"annotate fidelity: --{name} is {getattr(args, name)}, expected at least {least}.")
    spec = read_document(args.labels / "spec.json", "the label spec")
    machine = read_machine(args.machine)
    from ..data.manifest import load_manifest
    from ..labels import LabelStore

    manifest = load_manifest(args.manifest, args.split)
    store = LabelStore(args.labels, args.split, manifest.shard_digests)
    from .fidelity import measure_fidelity

    with job_log(
        f"fidelity {args.labels.name}", digest=digest_of(spec), seed=args.seed, device=machine["device"]
    ) as job:
        found = measure_fidelity(spec, machine, manifest, store, args.images, args.crops, args.seed, args.annotator)
        job["images"] = found["photographs"]
        write_json(args.out, found)
        for name, value in found["measures"].items():
            logger.info("  %6.3f [%.3f, %.3f]  %s", value["mean"], value["low"], value["high"], name)
    return 0
