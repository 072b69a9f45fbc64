"""Makes an experiment's table (CSV), page (Markdown) and figure (PNG) from the evaluations of all rows, or of those so far."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a table job, of classifiers or of segmenters."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the table, as the workflow writes it")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--markdown", type=Path, required=True, help="the same as a page to write")
    parser.add_argument(
        "--figure", type=Path, required=True, help="PNG file to write; what is drawn goes beside it as CSV"
    )
    parser.add_argument(
        "--so-far", action="store_true", help="leave rows without an evaluation empty (default: every one must exist)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the table, its page and its figure."""
    table = read_document(args.spec, "the table's plan")
    from .figures import draw_table
    from .markdown import as_markdown
    from .tables import as_csv, collect_rows

    rows = collect_rows(table, Path(), complete=not args.so_far)
    draw_table(table, rows, args.figure)
    write_text(args.markdown, as_markdown(table, rows))
    write_text(args.csv, as_csv(rows))
    logger.info("%s: %d rows, %d without a run", args.csv, len(rows), sum(row.state == "planned" for row in rows))
    return 0
