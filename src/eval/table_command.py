"""Makes an experiment's table (CSV) and figure (PNG) from its runs' evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a table job."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the table, as the workflow writes it")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the table and its figure."""
    table = read_document(args.spec, "the table's plan")
    from .figures import draw_table
    from .tables import as_csv, collect_rows

    rows = collect_rows(table, Path())
    draw_table(table, rows, args.figure)
    write_text(args.csv, as_csv(rows))
    logger.info("%s: %d rows", args.csv, len(rows))
    return 0
