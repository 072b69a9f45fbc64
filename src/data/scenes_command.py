"""Pairs photographs and masks of a data set for segmentation, checks every one, and lists them in a manifest."""

from __future__ import annotations

import argparse
import time

from ..core.command import read_document, read_machine
from ..core.files import write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger
from .command import add_arguments as add_arguments
from .scenes import build_scene_manifests, save_scene_manifests


def run(args: argparse.Namespace) -> int:
    """Writes the manifest and its marker."""
    spec = read_document(args.spec, "the spec of the scenes")
    machine = read_machine(args.machine)
    started = time.monotonic()
    with job_log("scenes", digest=digest_of(spec), seed=None, device="cpu") as counts:
        manifests = build_scene_manifests(spec, machine)
        summary = save_scene_manifests(args.done.parent, manifests)
        counts["images"] = sum(len(manifest) for manifest in manifests.values())
        for split, manifest in manifests.items():
            logger.info("%s: %d scenes, %d left out", split, len(manifest), len(manifest.unreadable))
        write_json(args.done, {"digest": digest_of(spec), "seconds": time.monotonic() - started, **summary})
    return 0
