"""Makes Table 12, LV-ViT-M at 384 px against CaiT, as CSV and page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the comparison job."""
    parser.add_argument("--spec", type=Path, required=True, help="plan of the comparison, as the workflow writes it")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--markdown", type=Path, required=True, help="the same as a page to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes the comparison."""
    plan = read_document(args.spec, "the comparison's plan")
    from .comparison import as_csv, as_markdown, compare
    from .tables import collect_rows

    (row,) = collect_rows(plan, Path(), complete=False)
    settings = compare(plan["specs"], row)
    write_text(args.markdown, as_markdown(settings, row))
    write_text(args.csv, as_csv(settings))
    logger.info(
        "%s: %d of %d settings agree with the paper", args.csv, sum(s.agrees is True for s in settings), len(settings)
    )
    return 0
