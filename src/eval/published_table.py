"""results/published: published checkpoints as we measure them beside what was printed, as CSV, Markdown and figure.

Called by `published_table_command`. A lab that sees `agrees` in every line has the photographs, classes, crops and weights
right, before it trains anything.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .results import read_published_result
from .style import BLUE, GREY, LEGEND_PT, ORANGE, SMALL_PT, add_legend, page, save, styled, wrapped

LABEL_IN = 1.75  # room for the names of checkpoints
AGREES_WITHIN = 0.1  # points of top-1: the last printed digit, and the rounding of another GPU


@dataclass(frozen=True)
class PublishedRow:
    """One checkpoint; accuracies and differences in percent and points, None prints as an empty cell.

    Attributes:
        printed: for these photographs; None where nothing was printed for this data set.
        verdict: `agrees` (within 0.1 points), `differs by ...`, or empty without a printed number.
    """

    name: str
    image_px: int
    crop: float
    interpolation: str
    top1: float
    printed_top1: float | None
    difference: float | None
    verdict: str
    top5: float
    real_top1: float | None
    printed_real_top1: float | None
    ece: float
    parameters_m: float
    gmacs: float
    images_per_s: float | None
    images: int
    skipped: int
    weights: str
    weights_sha256: str


def read_rows(plan: dict[str, Any], base: Path) -> list[PublishedRow]:
    """Reads the evaluations of the table's plan.

    Args:
        plan: as `PublishedTable.as_json` writes it.
        base: the folder that its paths are relative to.

    Raises:
        DataError: an evaluation is missing, half-written, of other measures or settings, or holds what is no measurement.
    """
    rows = []
    for row in plan["rows"]:
        rows.append(_row(row, read_published_result(base / row["evaluation"])))
    return rows


def _row(row: dict[str, Any], found: dict[str, Any]) -> PublishedRow:
    printed = row["printed_top1"]
    difference = None if printed is None else found["top1"] - printed
    return PublishedRow(
        name=row["name"],
        image_px=row["image_px"],
        crop=row["crop"],
        interpolation=row["interpolation"],
        top1=found["top1"],
        printed_top1=printed,
        difference=difference,
        verdict=verdict(difference),
        top5=found["top5"],
        real_top1=found.get("real_top1"),
        printed_real_top1=row["printed_real_top1"],
        ece=found["ece"],
        parameters_m=found["parameters_m"],
        gmacs=found["gmacs"],
        images_per_s=found.get("images_per_s"),
        images=found["val_images"],
        skipped=found["val_skipped"],
        weights=found["weights"],
        weights_sha256=found["weights_sha256"],
    )


def verdict(difference: float | None) -> str:
    """What a difference to the printed top-1, in points, says."""
    if difference is None:
        return ""
    if round(abs(difference), 6) <= AGREES_WITHIN:  # 83.2 - 83.3 is a little more than 0.1 in floating point
        return "agrees"
    return f"differs by {difference:+.2f}"


def as_csv(rows: Sequence[PublishedRow]) -> str:
    """Comma-separated text with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(PublishedRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(name, value) for name, value in asdict(row).items()} for row in rows)
    return out.getvalue()


def as_markdown(plan: dict[str, Any], rows: Sequence[PublishedRow]) -> str:
    """The same as a page: what was measured, the table, and where each file is from."""
    columns = {
        "checkpoint": "name", "px": "image_px", "crop": "crop", "top-1": "top1", "printed": "printed_top1",
        "difference": "difference", "verdict": "verdict", "top-5": "top5", "ReaL": "real_top1",
        "ReaL printed": "printed_real_top1", "parameters (M)": "parameters_m", "GMACs": "gmacs", "photographs": "images",
    }  # fmt: skip
    lines = [
        "# Published checkpoints",
        "",
        f"Measured on the validation photographs of {plan['dataset']}, beside the printed accuracies (%).",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    lines += [f"| {' | '.join(str(cell(name, getattr(row, name))) for name in columns.values())} |" for row in rows]
    lines += ["", "| checkpoint | file | sha256 | from |", "|---|---|---|---|"]
    sources = {row["name"]: row["source"] for row in plan["rows"]}
    lines += [f"| {row.name} | {row.weights} | {row.weights_sha256} | {sources[row.name]} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(name: str, value: Any) -> Any:
    """A value as tables print it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}" if name == "crop" else f"{value:+.2f}" if name == "difference" else f"{value:.2f}"
    return value


def draw(plan: dict[str, Any], rows: Sequence[PublishedRow], path: Path) -> None:
    """Draws ours filled and the printed accuracy hollow, a line for each checkpoint, to a PNG file."""
    with styled():
        save(published_figure(plan, rows), path)


def published_figure(plan: dict[str, Any], rows: Sequence[PublishedRow]) -> Figure:
    """The figure; call it in `styled`. The verdicts stand to the right of the axes, where no mark hides them."""
    figure = page(
        0.7 + 0.3 * len(rows), [f"Published checkpoints, {rows[0].images:,} photographs of {plan['dataset']}"], []
    )
    axes = figure.add_subplot()
    ours = Line2D([row.top1 for row in rows], range(len(rows)), linestyle="", marker="o", color=BLUE, label="ours")
    handles = [axes.add_line(ours)]
    printed = [(row.printed_top1, place) for place, row in enumerate(rows) if row.printed_top1 is not None]
    if printed:
        hollow = Line2D(
            *zip(*printed, strict=True), linestyle="", marker="D", markersize=9, markerfacecolor="none", color=ORANGE,
            label="printed",
        )  # fmt: skip
        handles.append(axes.add_line(hollow))
    for place, row in enumerate(rows):
        axes.annotate(
            row.verdict, (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            fontsize=SMALL_PT, va="center", color=GREY, annotation_clip=False,
        )  # fmt: skip
    names = [f"{row.name}, {row.image_px} px" for row in rows]
    axes.set_yticks(range(len(rows)), [wrapped(name, LABEL_IN, LEGEND_PT, most_lines=2) for name in names])
    axes.margins(x=0.1)
    axes.autoscale_view()
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_xlabel("top-1 accuracy (%)")
    add_legend(figure, handles)
    return figure
