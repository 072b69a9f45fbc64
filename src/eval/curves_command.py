"""Makes the training curves of an experiment's runs: a CSV of all epochs and a figure (PNG)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a curves job."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the table, as the workflow writes it")
    parser.add_argument("--csv", type=Path, required=True, help="table of epochs to write")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes both files."""
    table = read_document(args.spec, "the table's plan")
    from .curves import as_csv, collect_curves, draw_curves

    curves = collect_curves(table, Path())
    draw_curves(table, curves, args.figure)
    write_text(args.csv, as_csv(table, curves))
    logger.info("%s: %d runs", args.figure, len(curves))
    return 0
