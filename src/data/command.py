"""Lists the photographs of a data set: ids, classes, sizes, the validation split and a digest per shard."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.files import write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger
from .manifest import build_manifests, save_manifests
from .timm_names import check_timm_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the manifest job."""
    add_job_arguments(parser)
    parser.add_argument("--done", type=Path, required=True, help="marker to write; the manifest lies beside it")


def run(args: argparse.Namespace) -> int:
    """Writes the manifest and its marker."""
    spec = read_document(args.spec, "the data spec")
    machine = read_machine(args.machine)
    started = time.monotonic()
    with job_log("manifest", digest=digest_of(spec), seed=None, device="cpu") as counts:
        check_timm_names(machine["timm_names"])
        manifests = build_manifests(spec, machine)
        summary = save_manifests(args.done.parent, manifests)
        counts["images"] = sum(len(manifest) for manifest in manifests.values())
        for split, manifest in manifests.items():
            logger.info("%s: %d photographs", split, len(manifest))
        write_json(args.done, {"digest": digest_of(spec), "seconds": time.monotonic() - started, **summary})
    return 0
