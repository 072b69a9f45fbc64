"""Makes a table of segmentation (CSV), its page (Markdown) and figure (PNG) from the evaluations of all rows and seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.command import read_document
from ..core.files import write_text
from ..core.log import logger
from .table_command import add_arguments

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Writes the table, its page and its figure."""
    table = read_document(args.spec, "the table's plan")
    from .segmentation_figure import draw_segmentation
    from .segmentation_table import as_csv, as_markdown, collect_segmentation

    rows = collect_segmentation(table, Path(), complete=not args.so_far)
    draw_segmentation(table, rows, args.figure)
    write_text(args.markdown, as_markdown(table, rows))
    write_text(args.csv, as_csv(rows))
    for row in rows:
        if row.state != "paper":
            logger.info("%s: %s, mean IoU %s / %s %%", row.label, row.state, row.miou_ss_mean, row.miou_ms_mean)
    return 0
