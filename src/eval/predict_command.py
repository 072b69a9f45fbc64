"""Classifies a folder of photographs with a trained checkpoint: classes as CSV, class maps as PNG and NPZ.

The CSV has a line for every photograph, with the reason where one could not be read. An NPZ holds `classes` and
`probabilities` (rows, cols, k; best first), `class_names`, and `box`: the part of the upright photograph that the map
covers, x0, y0, x1, y1 in [0, 1].
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..core.errors import DataError
from ..core.files import atomic_path
from ..core.log import logger
from .checkpoint_arguments import add_checkpoint_arguments, check_arguments, open_checkpoint, warn_of_untrained_head

if TYPE_CHECKING:
    from .prediction import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a prediction."""
    add_checkpoint_arguments(parser)
    parser.add_argument("folder", type=Path, help="photographs, subfolders too; or one photograph")
    parser.add_argument("--out", type=Path, default=None, help="CSV file to write (default: standard output)")
    parser.add_argument(
        "--maps", type=Path, default=None, help="folder for class maps: a PNG and an NPZ per photograph"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="classes per photograph and per token (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="photographs at a time (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="decoding threads (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes one CSV line per photograph; returns 1 when some could not be read.

    Raises:
        DataError: no photographs, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or unknown.
    """
    check_arguments(args, ("top", "batch", "workers"))
    root, paths = _photographs(args.folder)
    if args.maps is not None and args.maps.resolve().is_relative_to(root.resolve()) and args.folder.is_dir():
        raise DataError(
            f"--maps {args.maps}: lies within {args.folder}, where the next call would take its pictures for photographs. "
            "Choose a folder elsewhere."
        )
    if args.maps is not None and args.maps.exists() and not args.maps.is_dir():
        raise DataError(f"--maps {args.maps}: is a file; a folder is expected.")
    if args.out is not None and args.out.is_dir():
        raise DataError(f"--out {args.out}: is a folder; a CSV file is expected.")
    from ..engine.device import choose_device, choose_precision
    from .prediction import Unreadable, predict_photographs

    loaded, preprocessing = open_checkpoint(args)
    if args.maps is not None:
        warn_of_untrained_head(loaded)
    classes = list(loaded.classes)
    device = choose_device(args.device)
    results = predict_photographs(
        loaded.model,
        paths,
        preprocessing,
        top=args.top,
        batch_size=args.batch,
        workers=args.workers,
        device=device,
        precision=choose_precision("auto", device),
    )
    ranks = min(args.top, len(classes))
    unreadable = 0
    with ExitStack() as stack:
        writer = csv.writer(_open_csv(stack, args.out))
        columns = [f"{what}_{rank + 1}" for rank in range(ranks) for what in ("class", "confidence")]
        writer.writerow(["path", *columns, "error"])
        for result in results:
            name = result.path.relative_to(root).as_posix()
            if isinstance(result, Unreadable):
                unreadable += 1
                logger.warning("%s: cannot be decoded (%s)", name, result.reason)
                writer.writerow([name, *([""] * 2 * ranks), result.reason])
                continue
            best = (-result.probability).argsort(kind="stable")[:ranks]
            cells = [cell for index in best for cell in (classes[index], f"{result.probability[index]:.4f}")]
            writer.writerow([name, *cells, ""])
            if args.maps is not None:
                _save_maps(args.maps / name, result, classes)
    logger.info("%d photographs, %d of them unreadable", len(paths), unreadable)
    return 1 if unreadable else 0


def _photographs(folder: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the image files."""
    from ..data.readers import iter_image_files

    if folder.is_file():
        return folder.parent, [folder]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder or photograph.")
    paths = list(iter_image_files(folder))
    if not paths:
        raise DataError(f"{folder}: no image files.")
    return folder, paths


def _open_csv(stack: ExitStack, out: Path | None) -> TextIO:
    """Standard output, or a file that appears whole at the end; names that are no text keep their bytes."""
    if out is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        return sys.stdout
    temporary = stack.enter_context(atomic_path(out))
    return stack.enter_context(open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape"))


def _save_maps(stem: Path, prediction: Prediction, classes: list[str]) -> None:
    """Writes the map as NPZ, and drawn over the part that was looked at, with a legend, as PNG."""
    import numpy as np

    from .drawing import draw_class_map, readable_class

    with atomic_path(stem.with_name(stem.name + ".npz")) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            classes=prediction.token_classes.astype(np.uint32),
            probabilities=prediction.token_probability.astype(np.float16),
            class_names=np.array(classes),
            box=np.array(prediction.box),
        )
    picture = draw_class_map(
        prediction.seen,
        prediction.token_classes[..., 0],
        prediction.token_probability[..., 0],
        lambda index: readable_class(classes[index]),
    )
    with atomic_path(stem.with_name(stem.name + ".png")) as temporary:
        picture.save(temporary, format="PNG")
