"""The figure of a result table: ours filled, the paper's hollow, the reason for any gap in words.

Colours are Okabe and Ito's, told apart by colour-blind readers and, with the marker shapes, in grey print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # jobs have no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ..core.files import atomic_path
from .tables import ResultRow

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
}
AXES = {
    "annotator_top1": "annotator's ImageNet top-1 accuracy (%)",
    "participation": "token participation rate",
}


def draw_table(table: dict[str, Any], rows: Sequence[ResultRow], path: Path) -> None:
    """Draws a table's rows to a PNG file.

    A numeric axis (`x` of the experiment) where every labeled row has a value for it, else one line per row.
    """
    with plt.rc_context(STYLE):
        rows = [row for row in rows if row.top1_mean is not None]
        x = table["x"]
        values = [getattr(row, x) for row in rows if row.annotator] if x in AXES else []
        figure, axes = plt.subplots(figsize=(6.4, 4.2 if len(values) > 1 else 1.6 + 0.45 * len(rows)))
        if len(values) > 1 and all(value is not None for value in values):
            _draw_against(axes, x, rows)
        else:
            _draw_rows(axes, rows)
        axes.set_title(f"{table['question']}\n{table['paper']}", loc="left", fontsize=9)
        capped = sorted({row.capped for row in rows if row.capped})
        notes = [f"{rows[0].val_images} validation photographs" if rows else "planned: nothing is measured yet"]
        if capped:
            notes.append("capped runs, not comparable with the paper: " + " | ".join(capped))
        figure.text(0.0, -0.02, "\n".join(notes), fontsize=7, color=GREY, va="top", wrap=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _draw_against(axes: Axes, x: str, rows: Sequence[ResultRow]) -> None:
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.annotator:
            groups.setdefault(row.run.split("-", 1)[0] if x == "participation" else "", []).append(row)
    for (name, members), colour, marker in zip(groups.items(), (BLUE, ORANGE, GREEN), "os^", strict=False):
        members = sorted(members, key=lambda row: getattr(row, x))
        places = [getattr(row, x) for row in members]
        sizes = [20 + (row.annotator_parameters_m or 0) / 2 if x == "annotator_top1" else 30 for row in members]
        joined = "-" if x == "participation" else ""
        axes.plot(places, [row.top1 for row in members], joined or " ", color=colour, linewidth=1)
        axes.scatter(
            places,
            [row.top1 for row in members],
            s=sizes,
            color=colour,
            marker=marker,
            label=f"ours {name}".strip(),
        )
        papers = [
            (place, row.paper_top1) for place, row in zip(places, members, strict=True) if row.paper_top1 is not None
        ]
        if papers:
            axes.scatter(
                [place for place, _ in papers],
                [top1 for _, top1 in papers],
                s=36,
                facecolors="none",
                edgecolors=colour,
                marker=marker,
                label=f"paper {name}".strip(),
            )
        if x == "annotator_top1":
            for row, place in zip(members, places, strict=True):
                axes.annotate(row.label, (place, row.top1), xytext=(4, 4), textcoords="offset points", fontsize=7)
    for row in rows:
        if not row.annotator:
            axes.axhline(row.top1, color=GREY, linestyle="--", linewidth=1, label=row.label)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel("top-1 accuracy (%)")
    axes.legend(frameon=False, fontsize=7)


def _draw_rows(axes: Axes, rows: Sequence[ResultRow]) -> None:
    places = list(range(len(rows)))[::-1]
    axes.errorbar(
        [row.top1 for row in rows],
        places,
        xerr=[row.top1_sd or 0.0 for row in rows],
        fmt="o",
        color=BLUE,
        label="ours, top-1",
    )
    axes.scatter(
        [row.top5_mean or row.top1 for row in rows], places, marker="|", s=80, color=GREEN, label="ours, top-5"
    )
    papers = [(row.paper_top1, place) for row, place in zip(rows, places, strict=True) if row.paper_top1 is not None]
    if papers:
        axes.scatter(
            [top1 for top1, _ in papers],
            [place for _, place in papers],
            marker="D",
            facecolors="none",
            edgecolors=ORANGE,
            label="paper, top-1",
        )
    axes.set_yticks(places, [row.label for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("accuracy (%)")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
