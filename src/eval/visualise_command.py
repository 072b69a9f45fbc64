"""Draws what a checkpoint sees in photographs: its class of every token, and what its best classes rest on.

The relevance maps are those of the paper's Figs. 6 and 7, for LV-ViT, T2T-ViT and timm's ViT and DeiT; other models get the
class maps alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DataError
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a visualisation."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a run's seed folder, an exported folder, or a weights file (.safetensors, .pth.tar)",
    )
    parser.add_argument("photographs", type=Path, nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--classes", type=int, default=2, help="best classes to explain, one column each (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=6, help="photographs taken from each folder, evenly spread (default: %(default)s)"
    )
    parser.add_argument(
        "--crop",
        type=float,
        default=None,
        help="share of the shorter side that is looked at (default: the checkpoint's)",
    )
    parser.add_argument("--architecture", default=None, help="of a published weights file: lvvit_s, timm/<name>, ...")
    parser.add_argument(
        "--image-px", type=int, default=None, help="side of the network's input (default: the checkpoint's)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Draws the page.

    Raises:
        DataError: no photographs, one that cannot be decoded, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or unknown.
    """
    for name in ("classes", "count"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name} {getattr(args, name)}: must be at least 1.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise DataError(f"--crop {args.crop}: must be above 0 and at most 1.")
    if args.out.suffix.lower() != ".png":
        raise DataError(f"--out {args.out}: must end in .png.")
    paths = _chosen(args.photographs, args.count)
    from ..engine.device import choose_device
    from ..models import load_model
    from .drawing import readable_class
    from .prediction import Preprocessing
    from .relevance import why_unsupported
    from .visualisation import draw_sights, look_at

    loaded = load_model(args.checkpoint, architecture=args.architecture, image_px=args.image_px)
    reason = why_unsupported(loaded.model)
    if reason is not None:
        logger.warning("no relevance maps of this model: %s; the class maps are drawn alone", reason)
    map_title = "class of each token"
    if (
        loaded.model.token_score_weight == 0
    ):  # that of a training without token loss, and of a plain classifier's weights
        map_title += " (by an untrained head?)"
        logger.warning("the token head has no say in the class, so it may be untrained and its class maps mean nothing")
    sights = look_at(
        loaded.model,
        paths,
        Preprocessing(args.crop or loaded.config.crop, loaded.config.interpolation),
        count=args.classes,
        with_relevance=reason is None,
        device=choose_device(args.device),
    )
    draw_sights(sights, lambda index: readable_class(loaded.classes[index]), args.out, map_title=map_title)
    logger.info("%s: %d photographs", args.out, len(sights))
    return 0


def _chosen(places: Sequence[Path], count: int) -> list[Path]:
    """The photographs named, and of each folder up to `count`."""
    from ..data.readers import iter_image_files
    from .drawing import spread_evenly

    chosen = []
    for place in places:
        if place.is_file():
            chosen.append(place)
            continue
        if not place.is_dir():
            raise DataError(f"{place}: no such photograph or folder.")
        found = list(iter_image_files(place))
        if not found:
            raise DataError(f"{place}: no image files.")
        chosen += [found[position] for position in spread_evenly(count, len(found))]
    return chosen
