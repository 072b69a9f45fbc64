"""The figure of a result table and the CSV of what it shows, of the kind that the experiment's key `figure` names.

Chooses the chart and writes the notes below it: how many photographs, what the bars are, what was capped.
Called by `table_command`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..core.files import write_text
from .charts import body_in, draw_annotators, draw_bars, draw_participation, draw_path, draw_rows
from .points import SIDEWAYS, Point, as_csv, kind_of_figure, points_of
from .style import page, save, styled
from .tables import ResultRow

CHARTS: dict[str, Callable[[Figure, Sequence[Point]], None]] = {
    "rows": draw_rows,
    "path": draw_path,
    "bars": draw_bars,
    "participation": draw_participation,
    "annotators": draw_annotators,
}
NAMED = 6  # rows that a note lists by name


def draw_table(table: dict[str, Any], rows: Sequence[ResultRow], path: Path) -> None:
    """Draws a table's rows to a PNG file, and writes what is drawn to a CSV file of the same name beside it.

    Args:
        table: as `Table.as_json` writes it.
        rows: of that table, also those that have no run yet.
        path: of the PNG file.

    Raises:
        OutputError: a file cannot be written.
    """
    with styled():
        figure, points = table_figure(table, rows)
        save(figure, path)
    write_text(path.with_suffix(".csv"), as_csv(points, sideways=kind_of_figure(table, rows) in SIDEWAYS))


def table_figure(table: dict[str, Any], rows: Sequence[ResultRow]) -> tuple[Figure, list[Point]]:
    """The figure and its points; call it in `styled`."""
    kind = kind_of_figure(table, rows)
    points = points_of(table, rows, kind)
    notes = [*notes_of(rows), _fallback(table["figure"], kind)]
    if kind == "path":
        notes.append("In brackets: gain over the first row.")
    figure = page(body_in(kind, points), [table["question"], table["paper"]], notes)
    CHARTS[kind](figure, points)
    return figure, points


def notes_of(rows: Sequence[ResultRow]) -> list[str]:
    """What a reader has to know below any figure of these rows: photographs, bars, caps."""
    measured = [row for row in rows if row.top1_mean is not None]
    if not measured:
        return ["Nothing is measured yet."]
    notes = []
    counts = sorted({row.val_images for row in measured if row.val_images})
    if counts:
        errors = [_standard_error(row.top1, row.val_images) for row in measured if row.val_images]
        notes.append(
            f"{_span([f'{count:,}' for count in counts])} validation photographs: binomial standard error of an accuracy "
            f"{'up to ' if len(errors) > 1 else ''}±{max(errors):.2f} points."
        )
    seeds = sorted({row.seeds for row in measured if row.top1_sd is not None})
    if seeds:
        notes.append(f"Error bars: standard deviation over {_span([str(count) for count in seeds])} seeds.")
    caps: dict[str, list[str]] = {}
    for row in measured:
        if row.capped:
            caps.setdefault(row.capped, []).append(row.label)
    for cap, labels in caps.items():
        named = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED} more" if len(labels) > NAMED else "")
        which = "all" if len(labels) == len(measured) else named
        notes.append(f"Grey: capped, not comparable with the paper: {cap} ({which}).")
    return notes


def _fallback(wanted: str, drawn: str) -> str:
    if wanted == drawn:
        return ""
    missing = {
        "annotators": "no annotator's own accuracy is given (paper_top1 of its entry)",
        "participation": "the rows do not differ in participation",
        "bars": "no two models share a setting",
    }
    return f"Listed row by row: {missing[wanted]}."


def _standard_error(top1: float, photographs: int) -> float:
    """Of an accuracy in percent, in points: sqrt(p (1 - p) / n).

    With two more right and two more wrong photographs (Agresti and Coull 1998): all of 40 right is no proof of 100 %.
    """
    counted = photographs + 4
    share = (top1 / 100 * photographs + 2) / counted
    return 100 * math.sqrt(share * (1 - share) / counted)


def _span(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
