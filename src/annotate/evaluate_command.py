"""Measures an annotator alone, as a classifier of the validation split."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.files import write_json
from ..core.identity import digest_of
from ..core.log import job_log, logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an annotator's evaluation."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--annotator", type=Path, required=True, help="folder with the annotator's spec.json")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Measures and writes the result, with the keys that a run's evaluation has."""
    evaluation = read_document(args.spec, "the evaluation's spec")
    machine = read_machine(args.machine)
    spec = read_document(args.annotator / "spec.json", "the annotator's spec")
    from ..data.manifest import load_manifest

    manifest = load_manifest(args.manifest, "val")
    manifest.open_source(machine)
    from ..engine.device import choose_device, choose_precision, set_threads
    from ..engine.validation import CenterCrops, measure_accuracy
    from ..models import count_multiply_adds, count_parameters
    from .dense import annotator_section, build_annotator

    started = time.monotonic()
    with job_log(f"evaluate {args.annotator}", digest=digest_of(spec), seed=None, device=machine["device"]) as counts:
        section = annotator_section(spec["annotator"], spec["image_px"], args.annotator if spec["adaptation"] else None)
        annotator = build_annotator(section, Path(machine["weights_root"]))
        annotator.check_classes(manifest.classes)
        device = choose_device(machine["device"])
        set_threads(machine["threads"])
        preprocessing = annotator.preprocessing
        crops = CenterCrops(
            manifest, machine, spec["image_px"], evaluation["crop"], evaluation["interpolation"], preprocessing.mean,
            preprocessing.std,
        )  # fmt: skip
        accuracy = measure_accuracy(
            annotator.backbone, crops, machine, num_classes=annotator.num_classes, device=device,
            precision=choose_precision(machine["precision"], device),
        )  # fmt: skip
        counts["images"] = accuracy["val_images"]
        logger.info("top-1 %.2f %%, top-5 %.2f %%", accuracy["top1"], accuracy["top5"])
        backbone = annotator.backbone.to("cpu")
        write_json(
            args.out,
            {
                "digest": digest_of(evaluation),
                **accuracy,
                "parameters_m": count_parameters(backbone) / 1e6,
                "gmacs": count_multiply_adds(backbone, spec["image_px"]) / 1e9,
                "weights": section["weights"],
                "weights_sha256": annotator.weights_sha256,
                "train_seconds": 0.0,
                "train_unreadable": 0,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    return 0
