"""Gives every pixel of own photographs a class: masks as PNG, overlays with a legend, and the classes' numbers as CSV.

A mask has its photograph's size, upright; its ids count from 0 in the order of classes.csv, its palette has the overlays' colours
(above 256 classes 16 bits a pixel and no palette). Photographs are looked at as the segmenter was tested: resized to its shorter
side and read by windows of its crops; by default at one scale.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DataError, UnreadableImageError
from ..core.files import atomic_path, write_text
from ..core.log import logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

PALETTE_CLASSES = 256  # that 8 bits tell apart
NAMED_CLASSES = 12  # below an overlay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a prediction."""
    parser.add_argument("checkpoint", type=Path, help="a segmenter's seed folder, or a weights file in one")
    parser.add_argument("photographs", type=Path, help="folder of photographs, subfolders too; or one photograph")
    parser.add_argument("--out", type=Path, required=True, help="folder to write: NAME.mask.png and NAME.overlay.png")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S",
        help="factors of the testing size, of which the mean counts (default: 1.0; the paper's: 0.75 1.0 1.25 1.5 1.75)",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="look at the mirror image of each scale, too")
    parser.add_argument(
        "--whole", action="store_true", help="look at a photograph in one pass (default: by windows that overlap)"
    )
    parser.add_argument("--batch", type=int, default=2, help="windows at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures; returns 1 when some photographs could not be read.

    Raises:
        DataError: no photographs, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or no segmenter.
    """
    if args.batch < 1:
        raise DataError(f"--batch {args.batch}: must be at least 1.")
    if wrong := [scale for scale in args.scales if not 0.1 <= scale <= 8]:
        raise DataError(f"--scales {wrong[0]:g}: must be between 0.1 and 8.")
    root, paths = _photographs(args.photographs, args.out)
    from PIL import Image

    from ..data.pixels import decode_upright
    from ..engine.device import choose_device, choose_precision
    from ..models.segmentation import load_segmenter
    from .testing import Look, predict_classes

    loaded = load_segmenter(args.checkpoint)
    config = loaded.config
    device = choose_device(args.device)
    precision = choose_precision("auto", device)
    model = loaded.model.to(device)
    look = Look(
        "whole" if args.whole else "slide", config.crop_px, max(config.crop_px * 2 // 3, 1), config.short_side_px,
        tuple(args.scales), args.flip,
    )  # fmt: skip
    write_text(args.out / "classes.csv", _classes_csv(loaded.classes))
    unreadable = 0
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            pixels = decode_upright(path.read_bytes())
        except (UnreadableImageError, OSError) as error:
            unreadable += 1
            logger.warning("%s: cannot be decoded (%s)", name, error)
            continue
        classes = predict_classes(
            model, look.resized(pixels), (pixels.shape[1], pixels.shape[2]), look,
            device=device, precision=precision, batch=args.batch,
        )  # fmt: skip
        photograph = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        _save(args.out / name, photograph, classes.cpu().numpy(), loaded.classes)
    logger.info("%d photographs, %d of them unreadable", len(paths), unreadable)
    return 1 if unreadable else 0


def _photographs(place: Path, out: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the image files."""
    from ..data.readers import iter_image_files

    if place.is_file():
        return place.parent, [place]
    if not place.is_dir():
        raise DataError(f"{place}: no such folder or photograph.")
    if out.resolve().is_relative_to(place.resolve()):
        raise DataError(
            f"--out {out}: lies within {place}, where the next call would take its pictures for photographs. Choose a folder "
            "elsewhere."
        )
    paths = list(iter_image_files(place))
    if not paths:
        raise DataError(f"{place}: no image files.")
    return place, paths


def _classes_csv(classes: tuple[str, ...]) -> str:
    """Id, name and colour of each class."""
    from ..data.scene_pictures import class_colours

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "class", "colour"])
    for index, (name, colour) in enumerate(zip(classes, class_colours(len(classes)).tolist(), strict=True)):
        writer.writerow([index, name, "#{:02x}{:02x}{:02x}".format(*colour)])
    return text.getvalue()


def _save(stem: Path, photograph: Image.Image, classes: NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Writes mask and overlay of a photograph."""
    from ..data.scene_pictures import largest_classes, lay_classes, with_legend

    named = list(largest_classes([classes], len(names), NAMED_CLASSES))
    overlay = with_legend(lay_classes(photograph, classes, len(names)), named, names)
    for kind, picture in (("mask", mask_picture(classes, len(names))), ("overlay", overlay)):
        with atomic_path(stem.with_name(f"{stem.name}.{kind}.png")) as temporary:
            picture.save(temporary, format="PNG")


def mask_picture(classes: NDArray[np.int64], num_classes: int) -> Image.Image:
    """A mask as a PNG holds it: ids with a palette of the classes' colours, or ids of 16 bits where there are too many."""
    import numpy as np
    from PIL import Image

    from ..data.scene_pictures import class_colours

    if num_classes > PALETTE_CLASSES:
        return Image.fromarray(classes.astype(np.uint16))
    picture = Image.fromarray(classes.astype(np.uint8), mode="P")
    picture.putpalette(class_colours(num_classes).tobytes())
    return picture
