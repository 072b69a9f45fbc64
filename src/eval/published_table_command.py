"""Makes results/published: CSV, Markdown and figure of the published checkpoints' evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the table job."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the table, as the workflow writes it")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--markdown", type=Path, required=True, help="the same as a page")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the three files."""
    plan = read_document(args.spec, "the table's plan")
    from .published_table import as_csv, as_markdown, draw, read_rows

    rows = read_rows(plan, Path())
    draw(plan, rows, args.figure)
    write_text(args.markdown, as_markdown(plan, rows))
    write_text(args.csv, as_csv(rows))
    for row in rows:
        logger.info(
            "%s: top-1 %.2f %%, printed %s; %s", row.name, row.top1, row.printed_top1, row.verdict or "no verdict"
        )
    return 0
