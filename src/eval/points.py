"""What a figure shows, as numbers: one Point for every mark and every empty place, and the CSV beside the figure.

The charts draw these points and nothing else, so the file holds exactly what is seen. Made from table rows by `points_of`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .tables import ResultRow
from .titles import setting_title, title_of

COLUMNS = ("name", "label", "series", "kind", "x", "y", "error", "size", "state", "capped")
SIDEWAYS = ("rows", "path")  # figures whose accuracy lies along the horizontal axis
REFERENCE = "reference"


@dataclass(frozen=True)
class Point:
    """One mark, or the empty place of one.

    Attributes:
        name: the row's; label: in words, as the figure writes it.
        series: what shares a colour and an entry of the legend.
        kind: ours | paper | other (methods of others, as the paper prints them).
        place: along the axis of the question; None where there is no number for it.
        top1: percent; None where no run has it yet.
        error: standard deviation over seeds, in points; None below two seeds.
        size: 10^6 parameters of the annotator, which the mark's area shows.
        state: done | partial | planned; seeds: e.g. "1 of 3" where partial.
        capped: what a cap changed, "" where nothing.
        difference: to the paper, where both are one experiment; as the table has it.
    """

    name: str
    label: str
    series: str
    kind: str
    place: float | None
    top1: float | None
    error: float | None = None
    size: float | None = None
    state: str = "done"
    capped: str = ""
    seeds: str = ""
    difference: float | None = None

    @property
    def at(self) -> float:
        """The place of a point that has one."""
        assert self.place is not None
        return self.place

    @property
    def accuracy(self) -> float:
        """The accuracy of a point that has one."""
        assert self.top1 is not None
        return self.top1

    @property
    def shown(self) -> bool:
        """Whether there is a mark, not an empty place."""
        return self.top1 is not None


def points_of(table: Mapping[str, Any], rows: Sequence[ResultRow], kind: str) -> list[Point]:
    """The points of a table's figure, ours in the order of the rows, each followed by the paper's number if it has one.

    Args:
        table: as `Table.as_json` writes it.
        rows: of that table.
        kind: of figure: rows | path | bars | participation | annotators.
    """
    if kind == "bars":
        ours = _bars(table, rows)
    elif kind == "participation":
        ours = [
            _point(row, title_of(row.model), row.participation)
            if row.supervision == "token"
            else _point(row, REFERENCE, None)
            for row in rows
        ]
    elif kind == "annotators":
        used = [row.annotator for row in rows]
        ours = [
            replace(
                _point(row, "ours", row.annotator_top1),
                label=title_of(row.annotator) if used.count(row.annotator) == 1 else row.label,
                size=row.annotator_parameters_m,
            )
            if row.annotator
            else _point(row, REFERENCE, None)
            for row in rows
        ]
    else:
        ours = [_point(row, "ours", float(position)) for position, row in enumerate(rows)]
    found = []
    for point, row in zip(ours, rows, strict=True):
        found.append(point)
        if row.paper_top1 is not None:
            found.append(
                replace(
                    point,
                    kind="paper",
                    top1=row.paper_top1,
                    error=None,
                    state="done",
                    capped="",
                    seeds="",
                    difference=None,
                )
            )
    return found


def kind_of_figure(table: Mapping[str, Any], rows: Sequence[ResultRow]) -> str:
    """The kind that the experiment asks for, or "rows" where the table has not what that kind is about."""
    kind: str = table["figure"]
    if kind == "annotators" and not any(row.annotator_top1 is not None for row in rows):
        return "rows"
    if kind == "participation" and len({row.participation for row in rows if row.supervision == "token"}) < 2:
        return "rows"
    if kind == "bars" and len({point.series for point in _bars(table, rows)}) > len(rows) // 2:
        return "rows"  # no two models share a setting: there is nothing to group
    return kind


def _point(row: ResultRow, series: str, place: float | None) -> Point:
    partial = f"{row.seeds} of {row.seeds_planned} seeds" if row.state == "partial" else ""
    return Point(
        name=row.name,
        label=row.label,
        series=series,
        kind="ours",
        place=place,
        top1=row.top1_mean,
        error=row.top1_sd,
        state=row.state,
        capped=row.capped,
        seeds=partial,
        difference=row.difference,
    )


def _bars(table: Mapping[str, Any], rows: Sequence[ResultRow]) -> list[Point]:
    """Groups of bars side by side, one group a model, centred on whole numbers."""
    differs = {row["name"]: row["differs"] for row in table["rows"]}
    series = {row.name: setting_title(differs[row.name], "model") or row.label for row in rows}
    if len({(row.model, series[row.name]) for row in rows}) < len(rows):  # two rows of a model would lie on each other
        series = {row.name: row.label for row in rows}
    models = list(dict.fromkeys(row.model for row in rows))
    names = list(dict.fromkeys(series.values()))
    return [
        replace(
            _point(
                row,
                series[row.name],
                models.index(row.model)
                + (names.index(series[row.name]) - (len(names) - 1) / 2) * bar_width(len(names)),
            ),
            label=title_of(row.model),
        )
        for row in rows
    ]


def bar_width(series: int) -> float:
    """Breadth of one of so many bars side by side, of the distance between groups."""
    return 0.8 / series


def as_csv(points: Iterable[Point], *, sideways: bool = False) -> str:
    """Comma-separated text: a line for every mark and every empty place, full precision.

    Args:
        points: in the order of the lines.
        sideways: the accuracy is drawn along x.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        x, y = (point.top1, point.place) if sideways else (point.place, point.top1)
        writer.writerow(
            [
                point.name,
                point.label,
                point.series,
                point.kind,
                x,
                y,
                point.error,
                point.size,
                point.state,
                point.capped,
            ]
        )
    return out.getvalue()
