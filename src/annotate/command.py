"""Stage 1: writes one label shard with a pretrained annotator. To bring in released labels: tokenlabel annotate import --help."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.errors import ConfigError
from ..core.identity import digest_of
from ..core.log import job_log, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a shard job."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--split", default="train", help="split to label (default: %(default)s)")
    parser.add_argument("--shard", type=int, required=True, help="which shard, from 0")
    parser.add_argument("--annotator", type=Path, default=None, help="folder of an annotator adapted to the data set")
    parser.add_argument("--done", type=Path, required=True, help="marker to write; the shard lies beside it")


def run(args: argparse.Namespace) -> int:
    """Writes the shard and its marker."""
    spec = read_document(args.spec, "the label spec")
    machine = read_machine(args.machine)
    from ..data.manifest import load_manifest

    manifest = load_manifest(args.manifest, args.split)
    if not 0 <= args.shard < len(manifest.shard_digests):
        raise ConfigError(f"--shard {args.shard}: the data set has shards 0 to {len(manifest.shard_digests) - 1}.")
    manifest.open_source(machine)  # a missing data root shall be the first thing the job says, before torch loads
    from .shard_job import annotate_shard

    title = f"annotate {args.done.parent.name} shard {args.shard}"
    with job_log(title, digest=digest_of(spec), seed=None, device=machine["device"]) as counts:
        marker = annotate_shard(spec, machine, manifest, args.shard, args.done, args.annotator)
        counts["images"] = marker["images"]
        logger.info(
            "%d photographs, %d unreadable, %d bytes", marker["images"], marker["unreadable"], marker["size_bytes"]
        )
    return 0
