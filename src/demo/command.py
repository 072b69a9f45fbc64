"""Makes the demo's data set: 20 real ImageNet photographs from the package foolbox, cut into 160 crops."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", type=Path, help="where train/ and val/ are made")


def run(args: argparse.Namespace) -> int:
    """Writes the crops that are not there yet."""
    from .photographs import write_crops

    written = write_crops(args.folder)
    logger.info("%s: %d crops written", args.folder, written)
    return 0
