"""The figure of a table of segmentation and the CSV of what it shows: mean IoU row by row, ours filled, the paper's hollow.

A row without a run keeps its place, empty and called `planned`; methods that nothing here trains stand below. Called by the
table command; decides no number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..core.files import write_text
from .charts import LABEL_IN, PLANNED, capped_handle, hollow_handle, write_columns
from .segmentation_table import SegmentationResultRow, with_deviation
from .style import BLUE, GREY, LEGEND_PT, ORANGE, PALE, add_legend, page, save, styled, wrapped

SCALES = {
    "miou_ss": ("single scale", "o", -0.16),
    "miou_ms": ("multi-scale", "D", 0.16),
}  # name, marker, place beside the row's
COLUMNS = ("name", "label", "series", "kind", "y", "x", "error", "state", "capped")


@dataclass(frozen=True)
class Mark:
    """One mark of the figure, or the empty place of one.

    Attributes:
        name, label: of the row.
        series: single scale | multi-scale.
        kind: ours | paper | other.
        place: from the top.
        miou: percent; None where no run has it.
        error: standard deviation over seeds; None below two.
    """

    name: str
    label: str
    series: str
    kind: str
    place: float
    miou: float | None
    error: float | None
    state: str
    capped: str


def draw_segmentation(table: Mapping[str, Any], rows: Sequence[SegmentationResultRow], path: Path) -> None:
    """Draws the rows to a PNG file, and writes what is drawn to a CSV file of the same name beside it.

    Raises:
        OutputError: a file cannot be written.
    """
    with styled():
        figure, marks = segmentation_figure(table, rows)
        save(figure, path)
    write_text(path.with_suffix(".csv"), _as_csv(marks))


def segmentation_figure(table: Mapping[str, Any], rows: Sequence[SegmentationResultRow]) -> tuple[Figure, list[Mark]]:
    """The figure and its marks; call it in `styled`."""
    marks = marks_of(rows)
    figure = page(0.8 + 0.36 * len(rows), [table["question"], table["paper"]], _notes(table, rows))
    axes = figure.add_subplot()
    for mark in marks:
        _draw(axes, mark)
    axes.set_yticks(range(len(rows)), [wrapped(row.label, LABEL_IN, LEGEND_PT, most_lines=2) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.set_xlabel("mean IoU of the validation scenes (%)")
    cells = [
        [
            PLANNED if row.state == "planned" else with_deviation(row.miou_ss_mean, row.miou_ss_sd, 1),
            with_deviation(row.paper_miou_ss, None, 1),
            with_deviation(row.miou_ms_mean, row.miou_ms_sd, 1),
            with_deviation(row.paper_miou_ms, None, 1),
            with_deviation(row.gain_miou_ms_mean, row.gain_miou_ms_sd, 1, sign="+").replace("-", "\N{MINUS SIGN}"),
        ]
        for row in rows
    ]
    write_columns(axes, ("SS", "paper", "MS", "paper", "gain MS"), cells)
    add_legend(figure, _handles(marks))
    return figure, marks


def marks_of(rows: Sequence[SegmentationResultRow]) -> list[Mark]:
    """Ours of every row at both scales, and the paper's where it has a number."""
    marks = []
    for position, row in enumerate(rows):
        for measure, (series, _, beside) in SCALES.items():
            shared = (row.name, row.label, series)
            place = position + (beside if row.state != "paper" else 0.0)
            if row.state != "paper":
                marks.append(
                    Mark(*shared, "ours", place, row.mean(measure), row.deviation(measure), row.state, row.capped)
                )
            if (printed := row.paper(measure)) is not None:
                marks.append(
                    Mark(*shared, "other" if row.state == "paper" else "paper", place, printed, None, "done", "")
                )
    return marks


def _draw(axes: Axes, mark: Mark) -> None:
    if mark.miou is None:
        return
    marker = next(marker for series, marker, _ in SCALES.values() if series == mark.series)
    look: dict[str, Any] = {"marker": marker, "linestyle": "", "markersize": 5}
    if mark.kind == "ours":
        grey = bool(mark.capped)
        look |= {"color": GREY if grey else BLUE, "markerfacecolor": PALE if grey else BLUE}
        axes.errorbar(mark.miou, mark.place, xerr=mark.error, elinewidth=1, capsize=2, zorder=3, **look)
    else:
        colour = ORANGE if mark.kind == "paper" else GREY
        axes.plot(mark.miou, mark.place, markerfacecolor="none", markeredgecolor=colour, zorder=4, **look)


def _handles(marks: Sequence[Mark]) -> list[Artist]:
    """Entries of the legend, of what is there."""
    handles: list[Artist] = []
    for series, marker, _ in SCALES.values():
        drawn = [mark for mark in marks if mark.series == series and mark.miou is not None]
        if any(mark.kind == "ours" and not mark.capped for mark in drawn):
            handles.append(Line2D([], [], color=BLUE, marker=marker, linestyle="", label=f"ours, {series}"))
        if any(mark.kind == "ours" and mark.capped for mark in drawn):
            grey = capped_handle(marker)
            grey.set_label(f"ours, {series}, capped")
            handles.append(grey)
        if any(mark.kind == "paper" for mark in drawn):
            handles.append(hollow_handle(marker, ORANGE, f"paper, {series}"))
        if any(mark.kind == "other" for mark in drawn):
            handles.append(hollow_handle(marker, GREY, f"other methods, {series}"))
    return handles


def _notes(table: Mapping[str, Any], rows: Sequence[SegmentationResultRow]) -> list[str]:
    """What a reader has to know below the figure."""
    measured = [row for row in rows if row.seeds]
    if not measured:
        return ["Nothing is measured yet."]
    notes = [f"{', '.join(sorted({f'{row.images:,}' for row in measured}))} validation scenes of {table['dataset']}."]
    if any(row.miou_ss_sd is not None for row in measured):
        seeds = " to ".join(dict.fromkeys(str(count) for count in sorted({row.seeds for row in measured})))
        notes.append(f"Error bars and ±: standard deviation over {seeds} seeds.")
    labels = {row.name: row.label for row in rows}
    pairs = [f"{row.label} over {labels[row.against]}" for row in measured if row.against and row.gain_seeds]
    if pairs:
        notes.append(f"Gain: mean of the differences of paired seeds; {'; '.join(pairs)}.")
    caps = list(dict.fromkeys(row.capped for row in measured if row.capped))
    if caps:
        notes.append(f"Grey: capped, not comparable with the paper: {'; '.join(caps)}.")
    return notes


def _as_csv(marks: Sequence[Mark]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for mark in marks:
        numbers = ["" if value is None else f"{value:.2f}" for value in (mark.place, mark.miou, mark.error)]
        writer.writerow([mark.name, mark.label, mark.series, mark.kind, *numbers, mark.state, mark.capped])
    return out.getvalue()
