"""Training curves of an experiment's runs: losses, the measure of the validations and the learning rate against the epoch.

Reads metrics.jsonl beside each evaluation that a table's plan names. Runs without one are left out; capped runs are marked. One
that is not what the training beside it wrote is refused. Runs are of classifiers or of segmenters, whose epochs are intervals of
steps. Called by `curves_command`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..core.errors import DataError
from ..core.files import read_json
from ..engine.reporting import MetricsFile, summarise
from .style import COLOURS, DASHES, add_legend, page, save, styled, words

COLUMNS = ("steps", "learning_rate", "loss", "class_loss", "token_loss", "top1", "top5")
SCENE_COLUMNS = ("steps", "learning_rate", "loss", "pixel_loss", "auxiliary_loss", "miou", "pixel_accuracy")
PANELS = {
    "class_loss": "class loss (training)",
    "token_loss": "token loss (training)",
    "pixel_loss": "pixel loss (training)",
    "top1": "top-1 accuracy (%, validation)",
    "miou": "mean IoU (%, validation, single scale)",
    "learning_rate": "learning rate",
}
REMEDY = "Restore it from a copy, or delete it: the curves are then drawn without this run."
MARKED_EPOCHS = 40  # a line with at most so many has a dot at each


@dataclass(frozen=True)
class Curve:
    """One seed of one row: its epochs' lines of metrics.jsonl."""

    row: str
    label: str
    run: str
    seed: int
    capped: str
    lines: list[dict[str, float]]


def collect_curves(table: dict[str, Any], base: Path) -> list[Curve]:
    """Reads the metrics of a table's runs.

    Args:
        table: as `Table.as_json` or `SegmentationTable.as_json` writes it.
        base: the folder that its paths are relative to.

    Raises:
        DataError: no run has any, or one's are damaged or of another training.
    """
    found = []
    for row in table["rows"]:
        for seed, evaluation in row["seeds"].items():
            file = MetricsFile((base / evaluation).parent / "metrics.jsonl")
            lines = _readable(file)
            if lines:
                _check_lines(file.path, lines, _columns(table))
                found.append(Curve(row["name"], row["label"], row["run"], int(seed), "; ".join(row["capped"]), lines))
    if not found:
        place = base / "results" / ("segmentation" if _of_scenes(table) else "runs")
        raise DataError(
            f"experiment {table['name']}: none of its {len(table['rows'])} runs has a metrics.jsonl under {place}. "
            "Train one first: run snakemake for the table."
        )
    return found


def _of_scenes(table: dict[str, Any]) -> bool:
    """Whether the table's runs are segmenters."""
    return table.get("stage") == "segment"


def _columns(table: dict[str, Any]) -> tuple[str, ...]:
    """What is shown of each epoch."""
    return SCENE_COLUMNS if _of_scenes(table) else COLUMNS


def _readable(file: MetricsFile) -> list[dict[str, float]]:
    try:
        return file.lines()
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror}).") from None


def _check_lines(path: Path, lines: list[dict[str, float]], columns: Sequence[str]) -> None:
    """Refuses what no training leaves: an epoch that is missing or there twice, no numbers, lines of another training."""
    for place, line in enumerate(lines):
        if line["epoch"] != place:
            raise DataError(
                f"{path}: epoch {line['epoch']} stands where epoch {place} should be; the file was changed or is damaged. {REMEDY}"
            )
        for name in columns:
            if not math.isfinite(line.get(name, 0.0)):
                raise DataError(
                    f"{path}: {name} of epoch {place} is no number, which no training goes on from. {REMEDY}"
                )
    summary = path.with_name("summary.json")
    if not summary.exists():
        return
    try:
        said = read_json(summary)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{summary}: cannot be read ({error}). Delete it: nothing but curves and hours rests on it."
        ) from None
    measured = summarise(lines)
    said = said if isinstance(said, dict) else {}
    wrong = [name for name in ("epochs", "steps", "losses") if said.get(name, measured[name]) != measured[name]]
    if wrong:
        raise DataError(
            f"{path}: its {' and '.join(wrong)} are not those of {summary.name} beside it; it is of another training. {REMEDY}"
        )


def as_csv(table: dict[str, Any], curves: Sequence[Curve]) -> str:
    """Comma-separated text: a line per epoch, full precision, empty where something was not measured."""
    columns = _columns(table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "label", "run", "seed", "capped", "epoch", *columns])
    for curve in curves:
        identity = [curve.row, curve.label, curve.run, curve.seed, curve.capped]
        for line in curve.lines:
            writer.writerow([*identity, int(line["epoch"]), *(line.get(name, "") for name in columns)])
    return out.getvalue()


def draw_curves(table: dict[str, Any], curves: Sequence[Curve], path: Path) -> None:
    """Draws the curves to a PNG file."""
    with styled():
        save(curves_figure(table, curves), path)


def curves_figure(table: dict[str, Any], curves: Sequence[Curve]) -> Figure:
    """A panel for each of PANELS that some run has; a colour and dashes for each row, its seeds alike. Call it in `styled`."""
    panels = [name for name in PANELS if any(name in line for curve in curves for line in curve.lines)]
    rows = list(dict.fromkeys(curve.row for curve in curves))
    notes = [f"{len(curves)} runs; the seeds of a row are lines of one colour."] if len(curves) > len(rows) else []
    notes += [
        f"Capped, not comparable with the paper: {cap}." for cap in sorted({curve.capped for curve in curves} - {""})
    ]
    lines = math.ceil(len(panels) / 2)
    figure = page(2.1 * lines + 0.1, [table["question"], table["paper"]], notes)
    grid = figure.subplots(lines, 2, squeeze=False, sharex=True)
    for name, axes in zip(panels, grid.flat, strict=False):
        for curve in curves:
            _draw_curve(axes, name, curve, rows.index(curve.row))
        axes.set_title(PANELS[name])
        axes.margins(x=0.02)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(len(panels) - 2, 0) : len(panels)]:  # the lowest of each column
        axes.set_xlabel("intervals done" if _of_scenes(table) else "epochs done")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=True)
    named = {curve.row: words(curve.label + (" (capped)" if curve.capped else "")) for curve in curves}
    add_legend(
        figure,
        [Line2D([], [], color=colour, linestyle=dashes, marker="", label=named[row])
         for row, (colour, dashes) in zip(rows, map(_look, range(len(rows))), strict=True)],
    )  # fmt: skip
    return figure


def _look(place: int) -> tuple[str, str]:
    """Colour and dashes, so that 28 rows are told apart."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _draw_curve(axes: Axes, name: str, curve: Curve, place: int) -> None:
    points = [(line["epoch"] + 1, line[name]) for line in curve.lines if name in line]
    colour, dashes = _look(place)
    axes.plot(
        [epoch for epoch, _ in points], [value for _, value in points], dashes, color=colour, linewidth=0.9, label=curve.label,
        marker="." if len(points) <= MARKED_EPOCHS else "", markersize=3,
    )  # fmt: skip
