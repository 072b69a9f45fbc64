"""Makes the summary of a first light, a CSV and a page: what each rule took, and what that makes of the whole study."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the summary's job."""
    parser.add_argument("--spec", type=Path, required=True, help="what the workflow says of both studies")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--markdown", type=Path, required=True, help="the same as a page to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes one line per rule; run in the folder that holds results/ and benchmarks/."""
    from .first_light import COLUMNS, as_page, measure_rules

    document = read_document(args.spec, "the first light's plan")
    rows = measure_rules(document, Path())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(row.cells() for row in rows)])
    write_text(args.markdown, as_page(document, rows))
    write_text(args.csv, text.getvalue())
    logger.info("%s: %d rules", args.csv, len(rows))
    return 0
