"""Makes the index of all tables so far, a CSV and a page: how much of each is done."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..core.command import read_document
from ..core.errors import DataError
from ..core.files import write_text
from ..core.log import logger

COLUMNS = ("table", "paper", "rows", "done", "partial", "planned", "seeds", "seeds_planned", "capped_rows", "refused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the index job."""
    parser.add_argument("--specs", type=Path, nargs="+", required=True, help="plans of the tables")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--markdown", type=Path, required=True, help="the same as a page to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes one line per table: rows by state, seeds finished and planned, rows that a cap changed, what is refused and why."""
    from .markdown import format_table
    from .segmentation_table import SegmentationResultRow, collect_segmentation
    from .tables import ResultRow, collect_rows

    lines = []
    for path in args.specs:
        table = read_document(path, "the table's plan")
        rows: Sequence[ResultRow | SegmentationResultRow]
        try:
            if table.get("stage") == "segment":
                rows = [row for row in collect_segmentation(table, Path(), complete=False) if row.state != "paper"]
            else:
                rows = collect_rows(table, Path(), complete=False)
        except DataError as error:  # the table itself is not made of it; the others are told all the same
            logger.warning("%s", error)
            lines.append([table["name"], table["paper"], str(len(table["rows"])), *[""] * 6, str(error)])
            continue
        lines.append(
            [
                table["name"],
                table["paper"],
                str(len(rows)),
                *(str(sum(row.state == state for row in rows)) for state in ("done", "partial", "planned")),
                str(sum(row.seeds for row in rows)),
                str(sum(row.seeds_planned for row in rows)),
                str(sum(bool(row.capped) for row in rows)),
                "",
            ]
        )
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *lines])
    page = f"# Tables so far\n\nSeeds: finished and planned trainings of all rows.\n\n{format_table(COLUMNS, lines)}\n"
    write_text(args.markdown, page)
    write_text(args.csv, out.getvalue())
    logger.info("%s: %d tables", args.csv, len(lines))
    return 0
