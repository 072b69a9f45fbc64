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

from matplotlib import pyplot as plt

from ..core.files import atomic_path
from .results import read_published_result
from .style import BLUE, GREY, ORANGE, STYLE

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
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 1.4 + 0.4 * len(rows)))
        places = list(range(len(rows)))[::-1]
        axes.plot([row.top1 for row in rows], places, "o", color=BLUE, label="ours, top-1")
        printed = [(row.printed_top1, place) for row, place in zip(rows, places, strict=True) if row.printed_top1]
        if printed:
            axes.plot(
                *zip(*printed, strict=True),
                "D",
                markersize=9,
                markerfacecolor="none",
                color=ORANGE,
                label="printed, top-1",
            )
        for row, place in zip(rows, places, strict=True):
            axes.annotate(
                row.verdict,
                (row.top1, place),
                xytext=(12, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                color=GREY,
            )
        axes.set_yticks(places, [f"{row.name}, {row.image_px} px" for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.margins(x=0.2)
        axes.set_xlabel("accuracy (%)")
        axes.set_title(
            f"Published checkpoints, {rows[0].images:,} photographs of {plan['dataset']}", loc="left", fontsize=9
        )
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)
