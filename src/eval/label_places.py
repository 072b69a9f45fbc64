"""Puts labels beside the points of a chart so that none lies on a point, on another label or outside of the axes.

Greedy: the most crowded point first, the nearest free place around it; a thin line leads back where that is far.
Called by the charts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from .style import GREY, SMALL_PT

DISTANCES_PT = (5, 8, 12, 17, 23, 30, 38, 47, 57, 70)
DIRECTIONS = 16
FAR_PT = 12  # from here on a line leads back to the point
GAP_PT = 1.0  # between two labels


def place_labels(
    figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], colours: Sequence[str],
    radii_pt: Sequence[float], obstacles: Sequence[tuple[float, float, float, float]] = (),
) -> list[Annotation]:  # fmt: skip
    """Labels points; the limits of the axes and everything else on them must be final.

    Args:
        figure: that the axes are of.
        axes: to write on.
        points: in data coordinates.
        labels: one each; "" for a point that only has to stay free.
        colours: of the labels.
        radii_pt: of the marks, in points.
        obstacles: boxes to keep free, x0 y0 x1 y1 in data coordinates; they may be lines.
    """
    figure.draw_without_rendering()  # the layout decides where the axes lie
    pixel = figure.dpi / 72
    centres = axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))
    taken = [_square(centre, radius * pixel) for centre, radius in zip(centres, radii_pt, strict=True)]
    ends = axes.transData.transform(np.asarray(obstacles, dtype=float).reshape(-1, 2)).reshape(-1, 2, 2)
    taken += [Bbox(pair).padded(2 * pixel) for pair in ends]
    inside = axes.get_window_extent()
    placed = []
    for index in sorted(range(len(labels)), key=lambda one: _neighbours(centres, one, 60 * pixel), reverse=True):
        if not labels[index]:
            continue
        note = axes.annotate(
            labels[index], points[index], xytext=(0, 0), textcoords="offset points", fontsize=SMALL_PT, color=colours[index],
            ha="center", va="center", annotation_clip=False,
        )  # fmt: skip
        note.set_in_layout(False)
        size = note.get_window_extent()
        offset, box = _free_place(centres[index], size, radii_pt[index] * pixel, pixel, taken, inside)
        note.set_position(tuple(offset / pixel))
        taken.append(box)
        placed.append(note)
        nearest = np.clip(centres[index], box.min, box.max)
        way = float(np.hypot(*(nearest - centres[index])))
        if way > (FAR_PT + radii_pt[index]) * pixel:
            edge = centres[index] + (nearest - centres[index]) * radii_pt[index] * pixel / way
            ends = axes.transData.inverted().transform([edge, nearest])
            axes.plot(*ends.T, color=GREY, linewidth=0.5, marker="", linestyle="-", zorder=1)
    return placed


def _free_place(
    centre: NDArray[np.float64], size: Bbox, radius: float, pixel: float, taken: Sequence[Bbox], inside: Bbox
) -> tuple[NDArray[np.float64], Bbox]:
    """Offset from the point and box of the nearest free place; the least covered one where none is free. All in pixels."""
    best: tuple[float, NDArray[np.float64], Bbox] | None = None
    half = np.array([size.width, size.height]) / 2
    for distance in DISTANCES_PT:
        for turn in range(DIRECTIONS):
            direction = np.array([math.cos(2 * math.pi * turn / DIRECTIONS), math.sin(2 * math.pi * turn / DIRECTIONS)])
            # the label's nearest edge, not its centre, keeps the distance
            offset = direction * (radius + (distance - 3) * pixel) + direction * half / max(abs(direction))
            box = Bbox([centre + offset - half, centre + offset + half]).padded(GAP_PT * pixel)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, inside)
            if covered + outside <= 0.01:
                return offset, box
            if best is None or covered + outside < best[0]:
                best = (covered + outside, offset, box)
    assert best is not None
    return best[1], best[2]


def _square(centre: NDArray[np.float64], radius: float) -> Bbox:
    return Bbox([centre - radius, centre + radius])


def _overlap(one: Bbox, other: Bbox) -> float:
    """Area in pixels that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _neighbours(centres: NDArray[np.float64], index: int, reach: float) -> int:
    return int((np.hypot(*(centres - centres[index]).T) < reach).sum())
