"""Checks finished labels against the manifest's class order; exit code 1 where they do not match.

By hand: `tokenlabel annotate check results/labels/lite0-1a2b3c4d --manifest results/data --classes-only`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import ConfigError
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a check."""
    parser.add_argument("labels", type=Path, help="folder of label shards")
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--split", default="train", help="labeled split (default: %(default)s)")
    parser.add_argument("--classes-only", action="store_true", help="check the class order, from manifest and labels")
    parser.add_argument("--images", type=int, default=5000, help="how many photographs at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and the verdict; 0: matches, 1: does not.

    Raises:
        ConfigError: nothing to check.
        DataError: the manifest is missing.
        LabelError: the labels are missing, damaged or of other photographs.
    """
    if not args.classes_only:
        raise ConfigError("annotate check: only the class order can be checked so far; add --classes-only.")
    if args.images < 1:
        raise ConfigError(f"annotate check: --images is {args.images}, expected at least 1.")
    from ..data.manifest import load_manifest
    from ..labels import LabelStore
    from .check import check_class_order

    manifest = load_manifest(args.manifest, args.split)
    found = check_class_order(LabelStore(args.labels, args.split), manifest, args.images, args.seed)
    logger.info("%s: %d photographs", args.labels, found.images)
    rows = {
        "own class in any cell": found.any_cell,
        "own class in pooled top 5": found.pooled,
        "chance": found.chance,
        "own classes shuffled": found.shuffled,
        **found.fits,
    }
    for name, share in rows.items():
        logger.info("  %6.3f  %s", share, name)
    logger.info("%s", found.verdict)
    return 0 if found.matches else 1
