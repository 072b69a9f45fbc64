"""The kinds of figures of a result table, each drawn from its points: ours filled, the paper's hollow, capped runs grey.

A row without a run keeps its place, empty and called `planned`. Called by `figures`; decides no number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .label_places import place_labels
from .points import REFERENCE, Point, bar_width
from .style import COLOURS, DASHES, GREY, MARKERS, ORANGE, PALE, SMALL_PT, add_legend, width_in, words, wrapped

MARK_AREA = 30.0  # pt^2
LARGEST_AREA = 420.0  # of an annotator's mark, pt^2
LABEL_IN = 1.75  # room for the names of rows
NAME_IN = 1.4  # for a name beside a mark or below an axis
BARS_A_PANEL = 16
# of bars side by side: neighbours differ in grey print
BAR_COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#F0E442", "#009E73", "#000000")
HATCHES = ("////", "....", "xxxx", "----", "++++", "oooo", "||||")  # of capped bars
BODY_IN = 2.6  # height of the axes of the charts with two numeric axes, about
ACCURACY = "top-1 accuracy (%)"
PLANNED = "planned"


def draw_rows(figure: Figure, points: Sequence[Point]) -> None:
    """One line per row, ours and the paper's joined, the numbers beside them."""
    axes = figure.add_subplot()
    ours, papers = of_kind(points, "ours"), by_name(points, "paper")
    _list_rows(axes, ours)
    for point in ours:
        paper = papers.get(point.name)
        if paper and point.top1 is not None:
            axes.plot(
                [point.accuracy, paper.accuracy], [point.at] * 2, "-", marker="", color=GREY, linewidth=0.8, zorder=1
            )  # fmt: skip
    handles = _mark_ours_and_paper(axes, points)
    cells = []
    for point in ours:
        paper = papers.get(point.name)
        cells.append([_value(point), _number(paper), _signed(point.difference)])
    write_columns(axes, ("ours", "paper", "difference"), cells)
    add_legend(figure, handles)


def draw_path(figure: Figure, points: Sequence[Point]) -> None:
    """Steps from a baseline, the first row: each accuracy with what has been gained since, as the paper writes it."""
    axes = figure.add_subplot()
    ours, papers = of_kind(points, "ours"), by_name(points, "paper")
    _list_rows(axes, ours)
    base, paper_base = None if ours[0].capped else ours[0].top1, papers.get(ours[0].name)
    for steps, colour, dashes in (
        (ours, COLOURS[0], DASHES[0]),
        ([papers[point.name] for point in ours if point.name in papers], ORANGE, DASHES[1]),
    ):
        for before, after in itertools.pairwise(steps):
            if not before.shown or not after.shown or after.at != before.at + 1:
                continue  # no line leads over a step that is still planned
            axes.plot(
                [before.accuracy, before.accuracy, after.accuracy], [before.at, after.at, after.at], dashes, marker="",
                color=colour, linewidth=1, zorder=1,
            )  # fmt: skip
    handles = _mark_ours_and_paper(axes, points)
    cells = []
    for point in ours:
        paper = papers.get(point.name)
        gained = _gain(point.top1, base) if point is not ours[0] and not point.capped else ""
        paper_gained = _gain(paper.top1, paper_base.top1) if paper and paper_base and point is not ours[0] else ""
        cells.append([_value(point) + gained, _number(paper) + paper_gained])
    write_columns(axes, ("ours (gain)", "paper (gain)"), cells)
    add_legend(figure, handles)


def draw_bars(figure: Figure, points: Sequence[Point]) -> None:
    """Bars side by side, a group for each model; further panels below where one page has not the breadth."""
    series = list(dict.fromkeys(point.series for point in points))
    groups = max(1, BARS_A_PANEL // len(series))
    last = max(round(point.at) for point in points)
    panels = figure.subplots(bar_panels(points), 1, sharey=True, squeeze=False)[:, 0]
    low, high = accuracy_limits(points)
    low = max(math.floor(low - 0.3 * (high - low)), 0)  # so that the shortest bar holds its number
    for number, axes in enumerate(panels):
        first = number * groups
        shown = [point for point in points if first <= round(point.at) < first + groups]
        _bars(axes, shown, series, low)
        titles = {round(point.at): point.label for point in shown}
        room_in = 5.6 / min(groups, last + 1)
        axes.set_xticks(list(titles), [wrapped(title, room_in, 8, most_lines=3) for title in titles.values()])
        axes.set_xlim(first - 0.5, first + min(groups, last + 1) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(low, high)
        axes.set_ylabel(f"{ACCURACY}\nfrom {low:g} on, not from 0" if low > 0 else ACCURACY)
        if low > 0:
            _break_axis(axes)
    capped = {bool(point.capped) for point in points if point.top1 is not None and point.kind == "ours"}
    handles: list[Artist] = [
        Patch(**_bar_look(place, grey), label=words(f"{name}, capped" if grey else name))
        for grey in sorted(capped or {False})
        for place, name in enumerate(series)
    ]
    if of_kind(points, "paper"):
        handles.append(hollow_handle("D", "black", "paper"))
    add_legend(figure, handles)


def body_in(kind: str, points: Sequence[Point]) -> float:
    """Height in inches that a kind of figure needs for these points, between its title and its notes."""
    lines = len(of_kind(points, "ours"))
    if kind == "bars":
        return 0.2 + 2.3 * bar_panels(points)
    unplaced = [
        width_in(short(point.label), 8) for point in points if point.place is None and point.series != REFERENCE
    ]
    numeric_in = BODY_IN + band_in(points) + 0.9 + max(unplaced, default=0)
    return {"rows": 0.75 + 0.3 * lines, "path": 0.75 + 0.34 * lines}.get(kind, numeric_in)


def bar_panels(points: Sequence[Point]) -> int:
    """How many panels the bars of these points need."""
    groups = max(1, BARS_A_PANEL // len({point.series for point in points}))
    return math.ceil((max(round(point.at) for point in points) + 1) / groups)


def draw_participation(figure: Figure, points: Sequence[Point]) -> None:
    """Accuracy against the share of tokens in the token loss, a line for each model."""
    placed = [point for point in points if point.series != REFERENCE]
    ((axes, band),) = _panels(figure, [1.0], points)
    handles: list[Artist] = []
    for number, name in enumerate(dict.fromkeys(point.series for point in placed)):
        look = Look(number)
        members = sorted((point for point in placed if point.series == name), key=lambda point: point.at)
        line = of_kind(members, "ours")
        axes.plot(  # not over a place that is planned
            [point.at for point in line], [point.accuracy if point.shown else math.nan for point in line],
            look.dashes, marker="", color=look.colour, linewidth=1, zorder=1,
        )  # fmt: skip
        draw_marks(axes, members, look)
        handles.append(
            Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dashes, linewidth=1, label=words(name))
        )
        if of_kind(members, "paper"):
            handles.append(hollow_handle(look.marker, look.colour, f"{name}, paper"))
    handles += _draw_references(axes, points)
    _finish(axes, points, handles)
    (band or axes).set_xlabel("token participation rate")
    add_legend(figure, handles)
    if band:
        _name_planned(figure, band, [(point.at, point.series) for point in _planned(placed)])


def draw_annotators(figure: Figure, points: Sequence[Point]) -> None:
    """Accuracy against the annotator's own, the mark's area proportional to its parameters.

    Annotators whose accuracy is not given stand side by side in a second panel.
    """
    placed = [point for point in points if point.place is not None]
    others = [point for point in points if point.place is None and point.series != REFERENCE]
    names = list(dict.fromkeys(point.name for point in others))
    others = [replace(point, place=float(names.index(point.name))) for point in others]
    panels = _panels(figure, [4.0, 0.6 + 0.35 * len(names)] if names else [1.0], points)
    axes, band = panels[0]
    areas, look = _areas(points), Look(0)
    draw_marks(axes, placed, look, areas)
    handles: list[Artist] = []
    if any(point.top1 is not None and not point.capped for point in of_kind([*placed, *others], "ours")):
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label="ours"))
    if of_kind([*placed, *others], "paper"):
        handles.append(hollow_handle(look.marker, look.colour, "paper"))
    handles += _draw_references(axes, points)
    (band or axes).set_xlabel("annotator's ImageNet\ntop-1 accuracy (%)")
    if names:
        side, side_band = panels[1]
        draw_marks(side, others, look, areas)
        _draw_references(side, points)
        side.set_xlim(-0.8, len(names) - 0.2)
        below = side_band or side
        titles = {point.name: short(point.label) for point in others}
        below.set_xticks(range(len(names)), list(titles.values()), rotation=90)
        below.set_xlabel("accuracy\nnot given")
    _add_sizes(panels[-1][0], areas)
    _finish(axes, points, handles)
    add_legend(figure, handles)
    if band:
        _name_planned(figure, band, [(point.at, point.label) for point in _planned(placed)])
    if names and side_band:
        _name_planned(figure, side_band, [(point.at, PLANNED) for point in _planned(others)])
    lines = [point.accuracy for point in points if point.series == REFERENCE and point.shown]
    _label_marks(figure, axes, placed, areas, lines)


def short(text: str) -> str:
    """A name on one line of bounded length."""
    return wrapped(text, NAME_IN, SMALL_PT, most_lines=1)


class Look:
    """Colour, marker and dashes of one of several series: told apart by colour, and without it."""

    def __init__(self, place: int) -> None:
        self.colour = COLOURS[place % len(COLOURS)]
        self.marker = MARKERS[place % len(MARKERS)]
        self.dashes = DASHES[place % len(DASHES)]


def of_kind(points: Sequence[Point], kind: str) -> list[Point]:
    """Those that are ours, the paper's or others'."""
    return [point for point in points if point.kind == kind]


def by_name(points: Sequence[Point], kind: str) -> dict[str, Point]:
    """Row name -> its point of a kind."""
    return {point.name: point for point in points if point.kind == kind}


def draw_marks(
    axes: Axes,
    points: Sequence[Point],
    look: Look,
    areas: dict[float, float] | None = None,
    *,
    sideways: bool = False,
) -> None:
    """Marks and error bars of the points that have an accuracy: filled ours, hollow the paper's, grey what was capped.

    Args:
        axes: to draw on.
        points: of one series, with a place each.
        look: of the series.
        areas: size of a point -> area of its mark in pt^2; the same for all without.
        sideways: the accuracy lies along x.
    """
    for kind, capped, face, edge, order in (
        ("other", False, "none", GREY, 2.0),
        ("ours", True, PALE, GREY, 3.0),
        ("ours", False, look.colour, look.colour, 3.0),
        ("paper", False, "none", look.colour, 4.0),  # hollow: ours shows through
    ):
        chosen = [point for point in of_kind(points, kind) if bool(point.capped) == capped and point.shown]
        if not chosen:
            continue
        x, y = np.array([(point.at, point.accuracy) for point in chosen]).T
        deviations = np.array([math.nan if point.error is None else point.error for point in chosen])
        sizes = [areas.get(point.size or 0.0, MARK_AREA) if areas else MARK_AREA for point in chosen]
        if sideways:
            x, y = y, x
        axes.scatter(
            x, y, s=sizes, facecolors=face, edgecolors=edge, marker=look.marker, linewidths=1.1, zorder=order, clip_on=False,
            alpha=0.7 if areas and kind == "ours" else None, label=f"{kind}, capped" if capped else kind,
        )  # fmt: skip
        repeated = np.isfinite(deviations)
        if repeated.any():
            ends = deviations[repeated]
            axes.errorbar(
                x[repeated], y[repeated], xerr=ends if sideways else None, yerr=None if sideways else ends, fmt="none",
                ecolor=edge, elinewidth=1, zorder=order - 0.5,
            )  # fmt: skip


def _mark_ours_and_paper(axes: Axes, points: Sequence[Point]) -> list[Artist]:
    """Draws both and sets the limits; returns the entries of the legend."""
    draw_marks(axes, of_kind(points, "ours"), Look(0), sideways=True)
    paper = Look(0)
    paper.colour, paper.marker = ORANGE, "D"
    draw_marks(axes, of_kind(points, "paper"), paper, sideways=True)
    handles: list[Artist] = []
    ours = [point for point in of_kind(points, "ours") if point.top1 is not None]
    if any(not point.capped for point in ours):
        handles.append(Line2D([], [], color=COLOURS[0], marker="o", linestyle="", label="ours"))
    if any(point.capped for point in ours):
        handles.append(capped_handle("o"))
    if of_kind(points, "paper"):
        handles.append(hollow_handle("D", ORANGE, "paper"))
    axes.set_xlim(*accuracy_limits(points))
    axes.set_xlabel(ACCURACY)
    return handles


def _list_rows(axes: Axes, ours: Sequence[Point]) -> None:
    places = [point.at for point in ours]
    axes.set_yticks(places, [wrapped(point.label, LABEL_IN, 8, most_lines=2) for point in ours])
    axes.set_ylim(len(ours) - 0.4, -0.6)  # the first row on top
    axes.tick_params(axis="y", length=0)


def write_columns(axes: Axes, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Numbers to the right of the axes, one line a row."""
    left_pt = 8.0
    for column, heading in enumerate(headings):
        entries = [row[column] for row in cells]
        if not any(entries):
            continue
        for place, text in [(-0.6, heading), *enumerate(entries)]:
            planned = text == PLANNED
            axes.annotate(
                text, (1, place), xycoords=("axes fraction", "data"), xytext=(left_pt, 3 if text is heading else 0),
                textcoords="offset points", fontsize=SMALL_PT, ha="left", va="bottom" if text is heading else "center",
                color=GREY if planned or text is heading else "black", style="italic" if planned else "normal",
                annotation_clip=False,
            )  # fmt: skip
        left_pt += max(width_in(text, SMALL_PT) for text in (heading, *entries)) * 72 + 8


def _bars(axes: Axes, shown: Sequence[Point], series: Sequence[str], low: float) -> None:
    breadth = bar_width(len(series))
    for point in shown:
        if point.kind == "paper":
            axes.plot(
                point.at, point.accuracy, "D", markerfacecolor="white", markeredgecolor="black", markersize=4, zorder=4
            )
        elif point.top1 is None:
            _stand(axes, point.at, PLANNED)
        else:
            axes.bar(
                point.at, point.accuracy - low, breadth, bottom=low, yerr=point.error, error_kw={"elinewidth": 1},
                **_bar_look(series.index(point.series), bool(point.capped)),
            )  # fmt: skip
            axes.annotate(
                f"{point.top1:.1f}", (point.place, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=SMALL_PT,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip


def _bar_look(place: int, capped: bool) -> dict[str, Any]:
    """How a bar of one of several series is filled."""
    if capped:
        return {
            "facecolor": PALE,
            "edgecolor": BAR_COLOURS[place % len(BAR_COLOURS)],
            "hatch": HATCHES[place % len(HATCHES)],
        }
    return {"facecolor": BAR_COLOURS[place % len(BAR_COLOURS)], "edgecolor": "white"}


def _stand(axes: Axes, place: float, text: str) -> None:
    """Writes upright at the foot of the axes."""
    axes.annotate(
        words(text), (place, 0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", rotation=90,
        ha="center", va="bottom", fontsize=SMALL_PT, color=GREY, style="italic",
    )  # fmt: skip


def _break_axis(axes: Axes) -> None:
    """Two strokes through the foot of the vertical axis: it does not start at 0."""
    for foot in (0.01, 0.04):
        axes.plot(
            [-0.012, 0.012], [foot, foot + 0.04], transform=axes.transAxes, clip_on=False, marker="", color="black", linewidth=1
        )  # fmt: skip


def _draw_references(axes: Axes, points: Sequence[Point]) -> list[Artist]:
    """A dashed line across for rows that have no place along the axis; returns their entries of the legend."""
    handles: list[Artist] = []
    for point in points:
        if point.series != REFERENCE:
            continue
        name = point.label + {"paper": ", paper"}.get(point.kind, ", capped" if point.capped else "")
        if point.top1 is None:
            handles.append(Line2D([], [], linestyle="", label=words(f"{name}: {PLANNED}")))
            continue
        line = axes.axhline(
            point.top1, linestyle=":" if point.kind == "paper" else "--", color=GREY, linewidth=1, marker=""
        )
        if point.error is not None:
            axes.axhspan(point.top1 - point.error, point.top1 + point.error, color=GREY, alpha=0.15, linewidth=0)
        line.set_label(words(name))
        handles.append(line)
    return handles


def _planned(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.state == PLANNED]


def band_in(points: Sequence[Point]) -> float:
    """Height in inches of the strip that names what is planned; 0 where nothing with a place of its own is."""
    names = [
        point.series if point.series not in ("ours", REFERENCE) else point.label
        for point in _planned(points)
        if point.series != REFERENCE
    ]
    return 0.25 + max(width_in(short(name), SMALL_PT) for name in (PLANNED, *names)) if names else 0.0


def _panels(figure: Figure, breadths: Sequence[float], points: Sequence[Point]) -> list[tuple[Axes, Axes | None]]:
    """Axes side by side, each with a strip below for what is planned, where anything is."""
    strip_in = band_in(points)
    heights = [BODY_IN, strip_in] if strip_in else [BODY_IN]
    grid = figure.subplots(
        len(heights), len(breadths), sharex="col", sharey="row", squeeze=False, width_ratios=breadths,
        height_ratios=heights,
    )  # fmt: skip
    for axes in grid[:, 1:].flat:
        axes.tick_params(axis="y", length=0)
    if not strip_in:
        return [(axes, None) for axes in grid[0]]
    for axes in grid[0]:
        axes.tick_params(axis="x", length=0)
    for strip in grid[1]:
        strip.set_facecolor("#F0F0F0")
        strip.tick_params(axis="y", length=0, labelleft=False)
        strip.grid(visible=False)
        strip.spines["left"].set_visible(False)
    grid[1, 0].set_ylabel(PLANNED, fontsize=SMALL_PT, color=GREY, style="italic")
    return list(zip(*grid, strict=True))


def _finish(axes: Axes, points: Sequence[Point], handles: list[Artist]) -> None:
    """Limits and words of a chart with two numeric axes; adds to the entries of its legend."""
    places = sorted({point.place for point in points if point.place is not None})
    spread = max(places[-1] - places[0], 0.1)
    axes.set_xlim(places[0] - 0.1 * spread, places[-1] + 0.1 * spread)
    axes.set_ylim(*accuracy_limits(points))
    axes.set_ylabel(ACCURACY)
    if any(point.capped and point.top1 is not None and point.series != REFERENCE for point in points):
        handles.append(capped_handle("o"))


def _name_planned(figure: Figure, strip: Axes, names: Sequence[tuple[float, str]]) -> None:
    """Writes names upright into the strip, each below its place, moved aside where two would lie on each other."""
    if not names:
        return
    figure.draw_without_rendering()  # the layout decides how broad the strip is
    pixels = strip.transData.transform([(place, 0.5) for place, _ in names])[:, 0]
    gap = SMALL_PT * 1.35 * figure.dpi / 72
    order = sorted(range(len(names)), key=lambda index: pixels[index])
    free = -math.inf
    spots = {}
    for index in order:
        spots[index] = max(pixels[index], free)
        free = spots[index] + gap
    free = strip.get_window_extent().x1
    for index in reversed(order):  # back into the strip from the right
        spots[index] = min(spots[index], free - gap / 2)
        free = spots[index] - gap / 2
    for index, (_, name) in enumerate(names):
        place = strip.transData.inverted().transform((spots[index], 0))[0]
        strip.annotate(
            short(name), (place, 0.5), xycoords=("data", "axes fraction"), rotation=90, ha="center", va="center",
            fontsize=SMALL_PT, color=GREY, style="italic",
        )  # fmt: skip


def _label_marks(
    figure: Figure, axes: Axes, points: Sequence[Point], areas: dict[float, float], lines: Sequence[float]
) -> None:
    """Names each annotator once, at our mark, or at the paper's where ours is planned; keeps off bars and lines across."""
    marked = [point for point in points if point.shown]
    ours = {point.name for point in of_kind(marked, "ours")}
    left, right = axes.get_xlim()
    place_labels(
        figure,
        axes,
        [(point.at, point.accuracy) for point in marked],
        ["" if point.kind == "paper" and point.name in ours else short(point.label) for point in marked],
        ["black"] * len(marked),
        [math.sqrt(areas.get(point.size or 0.0, MARK_AREA)) / 2 for point in marked],
        [(left, line, right, line) for line in lines]
        + [(point.at, _ends(point)[0], point.at, _ends(point)[1]) for point in marked],
    )


def _add_sizes(axes: Axes, areas: dict[float, float]) -> None:
    """Names three of the sizes to the right of the axes."""
    if not areas:
        return
    handles = [hollow_handle("o", GREY, f"{size:g} M") for size in _sizes_to_show(areas)]
    for handle, size in zip(handles, _sizes_to_show(areas), strict=True):
        handle.set_markersize(math.sqrt(areas[size]))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="annotator's\nparameters", title_fontsize=8,
        handleheight=math.sqrt(LARGEST_AREA) / 8, borderaxespad=0,
    )  # fmt: skip


def _areas(points: Sequence[Point]) -> dict[float, float]:
    """10^6 parameters -> area of the mark in pt^2, in proportion."""
    sizes = {point.size for point in points if point.size}
    return {size: LARGEST_AREA * size / max(sizes) for size in sizes}


def _sizes_to_show(areas: dict[float, float]) -> list[float]:
    """Smallest, middle and largest, for the legend of sizes."""
    sizes = sorted(areas)
    return sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]}) if sizes else []


def accuracy_limits(points: Sequence[Point]) -> tuple[float, float]:
    """Ends of the accuracy axis: a little beyond the marks and bars, within 0 and 100 as far as marks allow."""
    values = [edge for point in points for edge in _ends(point)]
    if not values:
        return 0.0, 100.0
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.25)
    return max(low - pad, -2.0), min(high + pad, 102.0)


def _ends(point: Point) -> list[float]:
    """Lowest and highest accuracy that a point's mark and bar reach; none of a planned one."""
    if point.top1 is None:
        return []
    error = point.error or 0.0
    return [point.top1 - error, point.top1 + error]


def _value(point: Point) -> str:
    if point.top1 is None:
        return PLANNED
    error = f" ± {point.error:.1f}" if point.error is not None else ""
    return (
        f"{point.top1:.1f}{error}" + (f" ({point.seeds})" if point.seeds else "") + (" capped" if point.capped else "")
    )


def _number(point: Point | None) -> str:
    return "" if point is None or point.top1 is None else f"{point.top1:.1f}"


def _gain(top1: float | None, base: float | None) -> str:
    return "" if top1 is None or base is None else f" ({_signed(top1 - base)})"


def _signed(points: float | None) -> str:
    return "" if points is None else f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def hollow_handle(marker: str, colour: str, name: str) -> Line2D:
    """A legend's entry for the paper's numbers."""
    return Line2D(
        [], [], marker=marker, linestyle="", markerfacecolor="none", markeredgecolor=colour, label=words(name)
    )


def capped_handle(marker: str) -> Line2D:
    """A legend's entry for capped runs."""
    return Line2D([], [], marker=marker, linestyle="", markerfacecolor=PALE, markeredgecolor=GREY, label="ours, capped")
