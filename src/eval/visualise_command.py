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
from .checkpoint_arguments import add_checkpoint_arguments, check_arguments, open_checkpoint, warn_of_untrained_head


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a visualisation."""
    add_checkpoint_arguments(parser)
    parser.add_argument("photographs", type=Path, nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--classes", type=int, default=2, help="best classes to explain, one column each (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=6, help="photographs taken from each folder, evenly spread (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Draws the page.

    Raises:
        DataError: no photographs, one that cannot be decoded, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or unknown.
    """
    check_arguments(args, ("classes", "count"))
    if args.out.suffix.lower() != ".png":
        raise DataError(f"--out {args.out}: must end in .png.")
    paths = _chosen(args.photographs, args.count)
    from ..engine.device import choose_device
    from .drawing import readable_class
    from .relevance import why_unsupported
    from .visualisation import draw_sights, look_at

    loaded, preprocessing = open_checkpoint(args)
    reason = why_unsupported(loaded.model)
    if reason is not None:
        logger.warning("no relevance maps of this model: %s; the class maps are drawn alone", reason)
    map_title = "class of each token"
    if warn_of_untrained_head(loaded):
        map_title += " (by an untrained head?)"
    sights = look_at(
        loaded.model,
        paths,
        preprocessing,
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
