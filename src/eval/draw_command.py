"""Draws label maps over photographs, with class names: one page, one column per annotator."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a drawing."""
    parser.add_argument("--machine", type=Path, required=True, help="machine.json: where the photographs lie")
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="label folders, one column each")
    parser.add_argument("--split", default="train", help="labeled split (default: %(default)s)")
    parser.add_argument("--count", type=int, default=6, help="photographs to draw (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Draws the page."""
    machine = read_document(args.machine, "the machine settings")
    from ..data.manifest import load_manifest
    from ..labels import LabelStore
    from .drawing import draw_label_maps

    stores = [LabelStore(folder, split=args.split) for folder in args.labels]
    draw_label_maps(load_manifest(args.manifest, args.split), machine, stores, args.out, args.count)
    logger.info("%s: %d photographs, %d annotators", args.out, args.count, len(stores))
    return 0
