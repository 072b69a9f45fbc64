"""Label maps drawn over the photographs they belong to: does each cell name what is there?

A cell's colour is its best class, its opacity that class's probability: where the annotator is unsure the photograph stays
plain. What the map does not cover (view `centre_crop`) is dimmed. One row per photograph, one column per annotator.
Called by `draw_command`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..core.files import atomic_path
from ..data.images import UnreadableImageError, decode_image
from ..labels import LabelStore
from ..labels.shards import STATUS_OK, STATUS_UNREADABLE
from ..labels.store import Label
from .style import PHOTOGRAPHS

# Okabe and Ito, without black; further classes of a map are drawn grey
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
OTHERS = "#BBBBBB"
SUREST_OPACITY = 0.75  # of a cell whose best class has probability 1: the photograph still shows
DIMMED = 0.3  # brightness of what the map does not cover
HEAT = "inferno"  # read by colour-blind people, and in grey print
HEAT_OPACITY = 0.6
LEGEND_CLASSES = 4
LEGEND_PX = 14  # height of the words below a class map
LEGEND_SHARE = 0.01  # of a map's mass; a class below is not named
PANEL_IN, LEGEND_IN = 2.6, 0.5  # breadth of a panel, room below it
LOWEST_ASPECT = 0.35  # of a panel, so that there is room for words
NOTE = (
    "Colour: best class of a cell. Opacity: its probability, so faint cells are unsure. Dark: not covered by the map."
)


@dataclass(frozen=True)
class Subject:
    """A photograph to draw: what it is called, its sample id, and its bytes."""

    title: str
    sample_id: int
    read: Callable[[], bytes]


def best_probability(label: Label, num_classes: int) -> NDArray[np.float32]:
    """Probability of each cell's best class, (rows, cols) in [0, 1].

    With a tail it is the annotator's own; without, classes that are not stored count as logit 0, as in the targets.
    """
    scores = label.scores.astype(np.float32)
    if label.tail is not None:
        rest = label.tail.astype(np.float32)
    else:
        with np.errstate(divide="ignore"):  # all classes stored: nothing is left, log 0
            rest = np.full(scores.shape[:2], np.log(np.float32(num_classes - scores.shape[2])))
    total = np.logaddexp(np.logaddexp.reduce(scores, axis=-1), rest)
    probability: NDArray[np.float32] = np.exp(scores[..., 0] - total)
    return probability


def class_shares(best_class: NDArray[np.integer], probability: NDArray[np.float32]) -> dict[int, float]:
    """Share of a map's mass that each best class holds, largest first."""
    classes, place = np.unique(best_class, return_inverse=True)
    mass = np.bincount(place.ravel(), weights=probability.ravel())
    shares = mass / max(float(mass.sum()), 1e-12)
    order = np.argsort(-shares, kind="stable")
    return {int(classes[index]): float(shares[index]) for index in order}


def choose_colours(shares: Sequence[Mapping[int, float]]) -> dict[int, str]:
    """A colour for each of the largest classes of some maps, so that one class looks the same in all of them."""
    total: dict[int, float] = {}
    for one in shares:
        for index, share in one.items():
            total[index] = total.get(index, 0.0) + share
    largest = sorted(total, key=lambda index: -total[index])[: len(COLOURS)]
    return dict(zip(largest, COLOURS, strict=False))


def covered_box(image_size: tuple[int, int], view: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in px of the part that a map covers.

    Args:
        image_size: height and width of the photograph in px.
        view: `squash` (all of it) or `centre_crop` (largest centred square).
    """
    height, width = image_size
    if view == "squash":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def overlay(
    photograph: Image.Image,
    best_class: NDArray[np.integer],
    opacity: NDArray[np.floating[Any]],
    colours: Mapping[int, str],
    view: str = "squash",
) -> Image.Image:
    """Lays a map over a photograph, cells as sharp rectangles, x to the right and y down.

    Args:
        photograph: RGB.
        best_class: integer (rows, cols).
        opacity: (rows, cols), in [0, 1].
        colours: of classes; others are grey.
        view: part of the photograph that the map covers.
    """
    paint = np.full((*best_class.shape, 3), _rgb(OTHERS), dtype=np.uint8)
    for index, colour in colours.items():
        paint[best_class == index] = _rgb(colour)
    left, top, right, bottom = covered_box((photograph.height, photograph.width), view)
    size = (right - left, bottom - top)
    cells = Image.fromarray(paint).resize(size, Image.Resampling.NEAREST)
    mask = Image.fromarray((opacity * 255).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    drawn = Image.blend(Image.new("RGB", photograph.size), photograph, DIMMED)
    drawn.paste(Image.composite(cells, photograph.crop((left, top, right, bottom)), mask), (left, top))
    return drawn


def draw_label(
    photograph: Image.Image, label: Label, store: LabelStore, colours: Mapping[int, str] | None = None
) -> tuple[Image.Image, dict[int, str]]:
    """Draws one label over its photograph.

    Returns:
        the picture, and the colours of the classes worth naming, largest first.
    """
    best_class, probability = label.classes[..., 0], best_probability(label, store.num_classes)
    shares = class_shares(best_class, probability)
    colours = choose_colours([shares]) if colours is None else colours
    drawn = overlay(photograph, best_class, probability * SUREST_OPACITY, colours, store.view)
    named = [index for index, share in shares.items() if index in colours and share >= LEGEND_SHARE]
    return drawn, {index: colours[index] for index in named[:LEGEND_CLASSES]}


def draw_class_map(
    seen: Image.Image,
    best_class: NDArray[np.integer],
    probability: NDArray[np.float32],
    class_name: Callable[[int], str],
) -> Image.Image:
    """A model's class map over what it saw, with the names of its largest classes below.

    Args:
        seen: RGB, the part that the map covers.
        best_class: integer (rows, cols).
        probability: of that class, (rows, cols) in [0, 1].
        class_name: words for a class index.
    """
    shares = class_shares(best_class, probability)
    colours = choose_colours([shares])
    named = [index for index, share in shares.items() if index in colours and share >= LEGEND_SHARE]
    font = ImageFont.load_default(LEGEND_PX)
    line = 2 * LEGEND_PX
    picture = Image.new("RGB", (seen.width, seen.height + line * len(named)), "white")
    picture.paste(overlay(seen, best_class, probability * SUREST_OPACITY, colours))
    pen = ImageDraw.Draw(picture)
    for row, index in enumerate(named):
        top = seen.height + row * line + LEGEND_PX // 2
        pen.rectangle((LEGEND_PX // 2, top, LEGEND_PX * 3 // 2, top + LEGEND_PX), fill=colours[index])
        words = f"{shorten(class_name(index), 40, placeholder='...')}  {shares[index]:.0%}"
        pen.text((2 * LEGEND_PX, top + LEGEND_PX // 2), words, fill="black", font=font, anchor="lm")
    return picture


def lay_heat(photograph: Image.Image, values: NDArray[np.floating[Any]]) -> Image.Image:
    """Lays a map of amounts over the grey photograph, smoothly, from its least (dark) to its largest value (bright).

    Args:
        photograph: RGB, the part that the map covers.
        values: (rows, cols), finite.
    """
    spread = float(np.ptp(values)) or 1.0
    cells = Image.fromarray(((values - values.min()) / spread).astype(np.float32))
    share = np.asarray(cells.resize(photograph.size, Image.Resampling.BILINEAR)).clip(0, 1)
    heat = Image.fromarray((plt.get_cmap(HEAT)(share)[..., :3] * 255).astype(np.uint8))
    return Image.blend(photograph.convert("L").convert("RGB"), heat, HEAT_OPACITY)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@cache
def _imagenet_descriptions() -> dict[str, str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {name: info.label_name_to_description(name).split(",")[0] for name in info.label_names()}


def readable_class(name: str) -> str:
    """A class folder's name in words: ImageNet's WordNet ids become their first noun, others stay."""
    return _imagenet_descriptions().get(name, name)


def spread_evenly(count: int, total: int) -> list[int]:
    """Up to `count` positions, evenly spread over [0, total)."""
    count = min(count, total)
    return [position * total // count for position in range(count)]


def draw_page(
    subjects: Sequence[Subject], stores: Sequence[LabelStore], class_name: Callable[[int], str], path: Path
) -> None:
    """Draws one page of label maps to a PNG file.

    Args:
        subjects: photographs, one row each.
        stores: one per annotator, one column each.
        class_name: words for a class index.
        path: file to write.

    Raises:
        LabelError: a store has no row for a photograph.
        OutputError: the file cannot be written.
    """
    columns = len(stores) + 1
    photographs = [_decoded(subject) for subject in subjects]
    heights_in = [PANEL_IN * _aspect(photograph) + LEGEND_IN for photograph in photographs]
    with plt.rc_context(PHOTOGRAPHS):
        figure, axes = plt.subplots(
            len(subjects), columns, figsize=(PANEL_IN * columns, sum(heights_in)), height_ratios=heights_in, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis in axes.ravel():
            axis.set_axis_off()
        for line, subject, photograph in zip(axes, subjects, photographs, strict=True):
            line[0].set_title(shorten(subject.title, 44, placeholder="..."), fontsize=7, loc="left")
            labels = [store[subject.sample_id] for store in stores]
            _draw_line(line, photograph, labels, stores, class_name)
        for axis, store in zip(axes[0][1:], stores, strict=True):
            shape = f"{store.grid[0]} x {store.grid[1]}"
            axis.set_title(f"{store.annotator} ({shape}, {store.view})", fontsize=7, loc="left")
        figure.supxlabel(NOTE if columns > 2 else NOTE.replace(". ", ".\n"), fontsize=5.5, x=0.01, ha="left")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _decoded(subject: Subject) -> Image.Image | str:
    """The photograph, or why there is none."""
    try:
        return decode_image(subject.read())
    except UnreadableImageError as error:
        return f"unreadable: {error}"


def _aspect(photograph: Image.Image | str) -> float:
    """Height of a row of the page, of its panels' width."""
    return LOWEST_ASPECT if isinstance(photograph, str) else max(photograph.height / photograph.width, LOWEST_ASPECT)


def _draw_line(
    axes: Sequence[Axes],
    photograph: Image.Image | str,
    labels: Sequence[Label],
    stores: Sequence[LabelStore],
    class_name: Callable[[int], str],
) -> None:
    """Draws a photograph and its maps; what cannot be shown is said in its place."""
    if isinstance(photograph, str):
        _say(axes[0], photograph)
    else:
        axes[0].imshow(photograph)
    colours = choose_colours(
        [
            class_shares(label.classes[..., 0], best_probability(label, store.num_classes))
            for label, store in zip(labels, stores, strict=True)
            if label.status == STATUS_OK
        ]
    )
    for axis, label, store in zip(axes[1:], labels, stores, strict=True):
        if label.status != STATUS_OK:
            _say(axis, f"unreadable: {label.reason}" if label.status == STATUS_UNREADABLE else "pending: no label yet")
            continue
        if isinstance(photograph, str):
            _say(axis, "labeled, but the photograph cannot be read now")
            continue
        drawn, legend = draw_label(photograph, label, store, colours)
        axis.imshow(drawn)
        add_legend(axis, legend, class_name)


def add_legend(axis: Axes, colours: Mapping[int, str], class_name: Callable[[int], str]) -> None:
    """Names the colours of a map below it."""
    handles = [
        Line2D([], [], marker="s", linestyle="", color=colour, label=shorten(class_name(index), 24, placeholder="..."))
        for index, colour in colours.items()
    ]
    axis.legend(
        handles=handles, fontsize=5.5, loc="upper center", bbox_to_anchor=(0.5, -0.01), frameon=False, ncols=2,
        handletextpad=0.1, columnspacing=0.6,
    )  # fmt: skip


def _say(axis: Axes, text: str) -> None:
    words = fill(shorten(text, 120, placeholder="..."), 36)
    axis.text(0.02, 0.95, words, fontsize=6, va="top").set_in_layout(False)  # a long reason must not widen the page
