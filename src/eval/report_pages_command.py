"""Makes the report's pages: every table to sort and search, the configuration, the versions, and what is not made yet."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import staged_folder
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the pages."""
    parser.add_argument("--spec", type=Path, required=True, help="what the report may show, as the workflow writes it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what was there goes")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes one HTML file for each page."""
    contents = read_document(args.spec, "the report's contents")
    from .report_pages import make_pages

    pages = make_pages(contents, Path())
    with staged_folder(args.out) as folder:
        for name, text in pages.items():
            (folder / f"{name}.html").write_text(text, encoding="utf-8")
    logger.info("%s: %d pages", args.out, len(pages))
    return 0
