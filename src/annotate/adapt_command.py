"""Makes an annotator for a data set's own classes: a linear probe on a pretrained network, or a fine-tuned one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.files import Lease, write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an adaptation job."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--run", type=Path, default=None, dest="run_folder", help="seed folder of the fine-tuning run")
    parser.add_argument(
        "--done", type=Path, required=True, help="marker to write; annotator.safetensors lies beside it"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the annotator's checkpoint and its marker."""
    spec = read_document(args.spec, "the annotator's spec")
    machine = read_machine(args.machine)
    from ..data.manifest import load_manifest

    manifests = {split: load_manifest(args.manifest, split) for split in ("train", "val")}
    manifests["train"].open_source(machine)
    from .adapt import adapt_annotator
    from .dense import ADAPTED_CHECKPOINT

    started = time.monotonic()
    title = f"adapt {args.done.parent.name}"
    with (
        job_log(title, digest=digest_of(spec), seed=None, device=machine["device"]) as counts,
        Lease(args.done.with_suffix(".lease")),
    ):
        facts = adapt_annotator(spec, machine, manifests, args.done, args.run_folder)
        counts["images"] = sum(len(manifest) for manifest in manifests.values())
        if measured := facts["validation"]:
            logger.info(
                "%s: top-1 %.1f %%, top-5 %.1f %% of %d validation photographs; calibration error %.1f %%, %.1f %% at "
                "temperature %.2f",
                args.done.with_name(ADAPTED_CHECKPOINT), measured["top1"], measured["top5"], measured["photographs"],
                measured["ece"],
                measured["ece_calibrated"], measured["temperature"],
            )  # fmt: skip
        write_json(args.done, {"digest": digest_of(spec), **facts, "seconds": round(time.monotonic() - started, 3)})
    return 0
