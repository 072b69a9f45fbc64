"""Draws Fig. 1, accuracy against parameters, from the evaluations of a table that exist (PNG, and CSV of what it shows)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the figure's job."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the table, as the workflow writes it")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file to write, and a CSV of the same name")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Draws what is there; rows without a run are named below the figure."""
    table = read_document(args.spec, "the table's plan")
    from .accuracy_parameters import draw_accuracy
    from .tables import collect_rows

    rows = collect_rows(table, Path(), complete=False)
    draw_accuracy(table, rows, args.figure)
    measured = sum(row.top1_mean is not None for row in rows)
    logger.info("%s: %d of %d rows are measured", args.figure, measured, len(rows))
    return 0
