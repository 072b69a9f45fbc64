"""Fig. 1: accuracy against parameters, ours beside the paper's LV-ViTs and the other methods of its Table 4.

Shows networks below 100 M parameters, as the paper does, and the paper's numbers only where a row has one of them to stand
beside, which no row of another data set has. Called by `accuracy_command`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..core import paper
from ..core.files import write_text
from .charts import ACCURACY, MARK_AREA, Look, accuracy_limits, capped_handle, draw_marks, hollow_handle, short
from .figures import notes_of
from .label_places import place_labels
from .points import Point, as_csv
from .style import GREY, add_legend, page, save, styled
from .tables import ResultRow
from .titles import title_of

MOST_PARAMETERS_M = 100.0
DEFAULT_PX = 224  # other test resolutions are written behind an @
OWN = "lvvit_"  # how the paper's own rows begin
OURS, PAPER, CNNS, TRANSFORMERS = "ours", "LV-ViT, paper", "CNNs, paper", "other transformers, paper"
MARKERS = {OURS: "o", PAPER: "o", CNNS: "s", TRANSFORMERS: "^"}


def accuracy_points(rows: Sequence[ResultRow]) -> list[Point]:
    """What Fig. 1 shows: the measured rows, and the paper's numbers where they belong to this data set."""
    ours = [
        Point(
            name=row.name, label=_label(title_of(row.model), row.image_px), series=OURS, kind="ours", place=row.parameters_m,
            top1=row.top1_mean, error=row.top1_sd, state=row.state, capped=row.capped,
        )
        for row in rows
        if row.parameters_m is not None
    ]  # fmt: skip
    papers = _paper_points() if any(row.paper_top1 is not None for row in rows) else []
    return [point for point in [*ours, *papers] if point.at < MOST_PARAMETERS_M]


def _paper_points() -> list[Point]:
    """Table 4's networks, and LV-ViT-T, which only Table 1 has."""
    places = {
        (number.table, number.row): None
        for number in paper.load()
        if number.table == "4" or (number.table, number.row) == ("1", f"{OWN}t")
    }
    points = []
    for table, row in places:
        parameters, top1 = _number(table, row, "params_m"), _number(table, row, "top1")
        if parameters is None or top1 is None:
            continue
        own = row.startswith(OWN)
        # what follows the model's name in a row's name is a test resolution, which is written from its number
        name = title_of("_".join(row.split("_")[:2])) if own else row.split(" ")[0]
        others = CNNS if _number(table, row, "cnn") else TRANSFORMERS
        points.append(
            Point(
                name=row, label=_label(name, _number(table, row, "test_px") or DEFAULT_PX), series=PAPER if own else others,
                kind="paper" if own else "other", place=parameters, top1=top1,
            )
        )  # fmt: skip
    return points


def _number(table: str, row: str, column: str) -> float | None:
    number = paper.value(table, row, column)
    return number.value if number else None


def _label(name: str, px: float) -> str:
    return name if px == DEFAULT_PX else f"{name}@{px:g}"


def draw_accuracy(table: dict[str, Any], rows: Sequence[ResultRow], path: Path) -> None:
    """Draws Fig. 1 to a PNG file, and writes what is drawn to a CSV file of the same name beside it.

    Args:
        table: as `Table.as_json` writes it.
        rows: of that table, also those that have no run yet.
        path: of the PNG file.

    Raises:
        OutputError: a file cannot be written.
    """
    points = accuracy_points(rows)
    with styled():
        save(accuracy_figure(table, rows, points), path)
    write_text(path.with_suffix(".csv"), as_csv(points))


def accuracy_figure(table: dict[str, Any], rows: Sequence[ResultRow], points: Sequence[Point]) -> Figure:
    """The figure; call it in `styled`."""
    planned = [row.label for row in rows if row.top1_mean is None]
    left_out = [row.label for row in rows if (row.parameters_m or 0) >= MOST_PARAMETERS_M]
    notes = [
        *notes_of(rows),
        f"Planned: {', '.join(planned)}." if planned else "",
        f"Not shown, {MOST_PARAMETERS_M:g} M parameters or more: {', '.join(left_out)}." if left_out else "",
    ]
    title = "Accuracy against parameters" + (", beside the paper's Fig. 1 and Table 4" if _has_papers(points) else "")
    figure = page(4.4, [title, table["question"]], notes)
    axes = figure.add_subplot()
    handles: list[Artist] = []
    for series, marker in MARKERS.items():
        members = [point for point in points if point.series == series and point.shown]
        if not members:
            continue
        look = Look(0)
        look.marker = marker
        draw_marks(axes, members, look)
        if series == OURS:
            if any(not point.capped for point in members):
                handles.append(Line2D([], [], color=look.colour, marker=marker, linestyle="", label=OURS))
            if any(point.capped for point in members):
                handles.append(capped_handle(marker))
        else:
            handles.append(hollow_handle(marker, look.colour if series == PAPER else GREY, series))
    axes.set_xlabel("parameters (10⁶)")
    axes.set_ylabel(ACCURACY)
    places = [point.at for point in points] or [0.0, MOST_PARAMETERS_M]
    reach = max(max(places) - min(places), 1.0)
    axes.set_xlim(min(places) - 0.06 * reach, max(places) + 0.12 * reach)
    axes.set_ylim(*accuracy_limits(points))
    add_legend(figure, handles)
    shown = [point for point in points if point.shown]
    ours = {point.label for point in shown if point.kind == "ours"}
    place_labels(
        figure,
        axes,
        [(point.at, point.accuracy) for point in shown],
        ["" if point.kind == "paper" and point.label in ours else short(point.label) for point in shown],
        [GREY if point.kind == "other" else "black" for point in shown],
        [(MARK_AREA**0.5) / 2 + 1] * len(shown),
        [
            (point.at, point.accuracy - point.error, point.at, point.accuracy + point.error)
            for point in shown
            if point.error
        ],
    )
    return figure


def _has_papers(points: Sequence[Point]) -> bool:
    return any(point.kind != "ours" for point in points)
