"""Transfer to segmentation: trains one segmenter of the study, or continues it where it was interrupted.

SIGTERM, SIGINT, SIGUSR1 and the deadline save a checkpoint first. Exit codes: 0 done, or a leg that hands over at its deadline; 2 a
mistake or circumstance to mend; 128 + the signal's number; 75 the deadline. After the last two the same command continues.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..core.command import read_document, read_machine
from ..core.identity import digest_of
from ..core.log import job_log
from ..data.scenes import SceneManifest, load_scene_manifest
from ..engine.run_arguments import add_run_arguments, leg_of, read_first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a training job; an epoch is an interval of the recipe's iterations."""
    add_run_arguments(parser, start="seed folder of the run whose backbone is taken over")


def run(args: argparse.Namespace) -> int:
    """Trains and writes the marker."""
    spec, machine, manifests = read_first(args, _read)
    from .job import segment_run

    title = f"{spec['stage']} {args.done.parent.parent.name}"
    with job_log(title, digest=digest_of(spec), seed=args.seed, device=machine["device"]) as counts:
        marker = segment_run(spec, machine, manifests=manifests, start_folder=args.start, **leg_of(args))
        counts["images"] = marker.get("images", 0)
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, SceneManifest]]:
    """Spec, machine and manifests; what is wrong with them is the first thing that the job says."""
    spec, machine = read_document(args.spec, "the run's spec"), read_machine(args.machine)
    manifests = {split: load_scene_manifest(args.manifest, split) for split in ("train", "val")}
    manifests["train"].open(machine)
    return spec, machine, manifests
