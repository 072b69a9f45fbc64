"""Measures a checkpoint on a folder of class folders: top-1, top-5, calibration error, each class.

The folders may be some of the checkpoint's classes; the others' logits are then left out. `evaluate run` and
`evaluate published` are the workflow's jobs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..core.errors import DataError
from ..core.files import write_json, write_text
from ..core.log import logger
from .checkpoint_arguments import add_checkpoint_arguments, check_arguments, open_checkpoint
from .command import classes_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an evaluation by hand."""
    add_checkpoint_arguments(parser)
    parser.add_argument("folder", type=Path, help="holds a folder of photographs for each class")
    parser.add_argument(
        "--classes",
        default="names",
        help="what the folders are called: names (of the checkpoint's classes), index (0, 1, ...) or file:PATH, a line "
        "`FOLDER CLASS` each (default: %(default)s)",
    )
    parser.add_argument(
        "--real-labels", default=None, help="reassessed labels of ImageNet's validation photographs: real.json, or "
        "package:timm/data/_info/imagenet_real_labels.json",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=None, help="JSON file to write; each class's accuracy goes to FILE.classes.csv"
    )
    parser.add_argument("--batch", type=int, default=32, help="photographs at a time (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="decoding processes, 0: none (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the measures and writes them where asked.

    Raises:
        DataError: no such folder, no photographs, folders that are no class of the checkpoint, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or unknown, or gives no finite logits.
    """
    check_arguments(args, ("batch",))
    if args.workers < 0:
        raise DataError(f"--workers {args.workers}: must be at least 0.")
    if args.classes not in ("names", "index") and not args.classes.startswith("file:"):
        raise DataError(f"--classes {args.classes}: must be names, index or file:PATH.")
    if not args.folder.is_dir():
        raise DataError(f"{args.folder}: no such folder.")
    from ..engine.device import choose_device, choose_precision
    from ..engine.validation import CenterCrops
    from .measures import classes_csv, measure_answers
    from .real_labels import find_real_labels, labels_of_rows, read_real_labels
    from .test_sets import open_image_set

    loaded, preprocessing = open_checkpoint(args)
    chosen = open_image_set(args.folder, args.classes, loaded.config.classes, title="folder")
    if len(chosen.manifest.classes) < 2:
        raise DataError(
            f"{args.folder}: one class folder, and its class is right without looking. Give two or more classes."
        )
    if chosen.columns is not None:
        logger.warning(
            "%d of the checkpoint's %d classes: the others' logits are left out",
            len(chosen.columns), len(loaded.config.classes),
        )  # fmt: skip
    real = None
    if args.real_labels is not None:
        file = find_real_labels(args.real_labels, Path())
        real = labels_of_rows(read_real_labels(file), chosen.manifest, file.name)
    device = choose_device(args.device)
    precision = choose_precision("auto", device)
    machine = chosen.machine({"micro_batch": args.batch, "workers": args.workers})
    model = loaded.model.to(device)
    crops = CenterCrops(
        chosen.manifest, machine, model.image_px, preprocessing.crop, loaded.config.interpolation, model.mean, model.std
    )
    found = measure_answers(
        model, crops, chosen.manifest, machine, columns=chosen.columns, real=real, where=loaded.report.where,
        device=device, precision=precision,
    )  # fmt: skip
    numbers = found.summary() | (
        {} if real is None else {"real_top1": found.real_top1, "real_images": found.real_images}
    )
    for name, unit in {"top1": " %", "top5": " %", "ece": " %", "real_top1": " %", "images": "", "skipped": ""}.items():
        if name in numbers:
            value = numbers[name]
            sys.stdout.write(f"{name:10}{f'{value:.2f}' if isinstance(value, float) else value}{unit}\n")
    if args.out is not None:
        how = {
            "checkpoint": loaded.report.where, "folder": str(args.folder), "image_px": model.image_px,
            "crop": preprocessing.crop, "interpolation": loaded.config.interpolation, "precision": str(precision),
        }  # fmt: skip
        write_text(classes_file(args.out), classes_csv(found.classes))
        write_json(args.out, numbers | how)
    return 1 if found.skipped else 0
