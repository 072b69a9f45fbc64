"""Training curves of an experiment's runs: losses, validation accuracy and learning rate against the epoch.

Reads metrics.jsonl beside each evaluation that a table's plan names. Runs without one are left out; capped runs are marked.
Called by `curves_command`.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..core.errors import DataError
from ..core.files import atomic_path
from ..engine.reporting import MetricsFile
from .figures import BLUE, GREEN, ORANGE, STYLE

COLUMNS = ("steps", "learning_rate", "loss", "class_loss", "token_loss", "top1", "top5")
PANELS = {
    "class_loss": "class loss (training)",
    "token_loss": "token loss (training)",
    "top1": "top-1 accuracy (%, validation)",
    "learning_rate": "learning rate",
}
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
DASHES = ("-", "--", ":")  # with the colours, 21 runs are told apart


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
        table: as `Table.as_json` writes it.
        base: the folder that its paths are relative to.

    Raises:
        DataError: no run has any.
    """
    found = []
    for row in table["rows"]:
        for seed, evaluation in row["seeds"].items():
            lines = MetricsFile((base / evaluation).parent / "metrics.jsonl").lines()
            if lines:
                found.append(Curve(row["name"], row["label"], row["run"], int(seed), "; ".join(row["capped"]), lines))
    if not found:
        raise DataError(
            f"experiment {table['name']}: none of its {len(table['rows'])} runs has a metrics.jsonl under {base / 'results/runs'}. "
            "Train one first: run snakemake for the table."
        )
    return found


def as_csv(curves: Sequence[Curve]) -> str:
    """Comma-separated text: a line per epoch, full precision, empty where something was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "label", "run", "seed", "capped", "epoch", *COLUMNS])
    for curve in curves:
        identity = [curve.row, curve.label, curve.run, curve.seed, curve.capped]
        for line in curve.lines:
            writer.writerow([*identity, int(line["epoch"]), *(line.get(name, "") for name in COLUMNS)])
    return out.getvalue()


def draw_curves(table: dict[str, Any], curves: Sequence[Curve], path: Path) -> None:
    """Draws the curves to a PNG file; a panel for each of PANELS that some run has."""
    panels = [name for name in PANELS if any(name in line for curve in curves for line in curve.lines)]
    rows = list(dict.fromkeys(curve.row for curve in curves))
    with plt.rc_context(STYLE):
        height = math.ceil(len(panels) / 2)
        figure, grid = plt.subplots(
            height, 2, figsize=(7.2, 2.6 * height), squeeze=False, sharex=True, layout="constrained"
        )
        for name, axes in zip(panels, grid.flat, strict=False):
            for curve in curves:
                place = rows.index(curve.row)
                _draw_curve(
                    axes, name, curve, COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
                )
            axes.set_title(PANELS[name], loc="left", fontsize=9)
            axes.margins(x=0.02)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("epochs done")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = grid.flat[0].get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))  # one of the seeds
        figure.legend(
            named.values(), named.keys(), loc="outside lower left", ncols=2, frameon=False, fontsize=7
        )  # fmt: skip
        capped = sorted({curve.capped for curve in curves if curve.capped})
        title = [table["question"], table["paper"]]
        if capped:
            title.append("Capped runs, not comparable with the paper: " + " | ".join(capped))
        figure.suptitle("\n".join(textwrap.fill(line, 110) for line in title), x=0.01, ha="left", fontsize=9)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _draw_curve(axes: Axes, name: str, curve: Curve, colour: str, dashes: str) -> None:
    points = [(line["epoch"] + 1, line[name]) for line in curve.lines if name in line]
    label = curve.label + (" (capped)" if curve.capped else "")
    few = len(points) <= 40
    axes.plot(
        [epoch for epoch, _ in points], [value for _, value in points], dashes, color=colour, linewidth=1, label=label,
        marker="." if few else None, markersize=3,
    )  # fmt: skip
