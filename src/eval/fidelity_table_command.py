"""Makes the table (CSV) and figure (PNG) of label fidelity from each annotator's measurement."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the table."""
    parser.add_argument(
        "measured", type=Path, nargs="+", help="JSON files of `tokenlabel annotate fidelity`, a row each"
    )
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the table and its figure.

    Raises:
        DataError: a measurement is missing or none.
    """
    from .fidelity_table import draw_fidelity, fidelity_csv, read_fidelity

    found = read_fidelity(args.measured)
    draw_fidelity(found, args.figure)
    write_text(args.csv, fidelity_csv(found))
    logger.info("%s: %d annotators", args.csv, len(found))
    return 0
