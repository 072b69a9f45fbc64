"""What a classifier and a segmenter see in the same photographs, as one page: every panel is the whole photograph.

One row per photograph: itself, the classifier's class of every token, the segmentation, and what the classifier's best classes
rest on. Each panel has the photograph's own frame, so that the same thing stands at the same place in all of them; the classifier
looks at the central square, the rest of its panels is dark. Called by `visualise_command`; decides nothing about either model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from ..core.files import atomic_path
from ..data.scene_pictures import class_colours, largest_classes, lay_classes
from .drawing import (
    DIMMED,
    HEAT,
    LEGEND_CLASSES,
    LEGEND_IN,
    LEGEND_SHARE,
    LOWEST_ASPECT,
    PANEL_IN,
    SUREST_OPACITY,
    add_legend,
    choose_colours,
    class_shares,
    lay_heat,
    overlay,
)
from .prediction import Prediction
from .style import PHOTOGRAPHS

HIGHEST_ASPECT = 1.5  # of a panel: a tall photograph is shown less wide
SCALE_IN = 0.45  # room for the colour scale
NAMED_CLASSES = 24  # of the segmentation, above the page
LEGEND_LINE_IN = 0.14
SHOWN_PX = 640  # longer side of a panel at most: a page of photographs straight from a camera stays small
TOKENS_NOTE = (
    "Class of a token: colour; its probability: opacity. Dark: outside the square that the classifier looks at."
)
RELEVANCE_NOTE = " Relevance for a class: each map from its least to its most."
SCENES_NOTE = "Segmentation: its classes stand above, by area; a class has the same colour on every page."


@dataclass(frozen=True)
class SceneView:
    """One photograph and what the models say of it.

    Attributes:
        title: over the photograph.
        photograph: RGB, whole and upright.
        prediction: the classifier's; None without one.
        classes: int64 (n,), its best classes, best first; empty without relevance maps.
        relevance: float32 (n, rows, cols), of those.
        mask: integer (height, width) of the photograph, the segmenter's class ids; None without one.
    """

    title: str
    photograph: Image.Image
    prediction: Prediction | None = None
    classes: Sequence[int] = ()
    relevance: NDArray[np.float32] | None = None
    mask: NDArray[np.integer[Any]] | None = None


def put_in_place(
    photograph: Image.Image, box: tuple[float, float, float, float], draw: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """The photograph with a part of it drawn anew at its place, and the rest dark.

    Args:
        photograph: RGB.
        box: the part's left, top, right and bottom in [0, 1] of the photograph.
        draw: from the part to what stands in its place, of the same size.
    """
    width, height = photograph.size
    left, top = round(box[0] * width), round(box[1] * height)
    right, bottom = max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)
    whole = Image.blend(Image.new("RGB", photograph.size), photograph, DIMMED)
    whole.paste(draw(photograph.crop((left, top, right, bottom))), (left, top))
    return whole


def draw_scene_page(
    views: Sequence[SceneView],
    path: Path,
    *,
    token_class: Callable[[int], str] | None = None,
    token_title: str = "class of each token",
    scene_classes: Sequence[str] = (),
) -> None:
    """Draws one page to a PNG file.

    Args:
        views: one row each; all of the same models.
        path: file to write.
        token_class: words for a class index of the classifier.
        token_title: over its class maps.
        scene_classes: the segmenter's classes, by id.

    Raises:
        OutputError: the file cannot be written.
    """
    views = [_shrunk(view) for view in views]
    has_tokens, has_masks = views[0].prediction is not None, views[0].mask is not None
    explained = max(len(view.classes) for view in views)
    columns = 1 + has_tokens + has_masks + explained
    heights_in = [PANEL_IN * _aspect(view.photograph) + (LEGEND_IN if has_tokens else 0.2) for view in views]
    named = largest_classes([view.mask for view in views if view.mask is not None], len(scene_classes), NAMED_CLASSES)
    below_in = (SCALE_IN if explained else 0.1) + LEGEND_LINE_IN * -(-len(named) // (2 * columns))
    with plt.rc_context(PHOTOGRAPHS):
        figure, axes = plt.subplots(
            len(views), columns, figsize=(PANEL_IN * columns, sum(heights_in) + below_in), height_ratios=heights_in,
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for axis in axes.ravel():
            axis.set_axis_off()
        for line, view in zip(axes, views, strict=True):
            _draw_line(line, view, token_class or str, token_title, scene_classes)
        if explained:
            scale = figure.colorbar(
                plt.cm.ScalarMappable(cmap=HEAT), ax=axes, location="bottom", shrink=0.3, aspect=40, pad=0.01,
                anchor=(0.95, 0),
            )  # fmt: skip
            scale.set_ticks([0, 1], labels=["least relevant", "most relevant"])
            scale.ax.tick_params(labelsize=5.5, length=0)
        if named:
            colours = class_colours(len(scene_classes)) / 255
            figure.legend(
                handles=[_entry(colours[index], scene_classes[index]) for index in named], fontsize=6,
                loc="outside upper left", ncols=2 * columns, frameon=False, handletextpad=0.1, columnspacing=0.8,
                title="Classes of the segmentation", title_fontsize=6, alignment="left",
            )  # fmt: skip
        notes = ((TOKENS_NOTE + RELEVANCE_NOTE * bool(explained)) * has_tokens, SCENES_NOTE * has_masks)
        figure.supxlabel("\n".join(note for note in notes if note), fontsize=5.5, x=0.01, ha="left")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _draw_line(
    axes: Sequence[Axes],
    view: SceneView,
    token_class: Callable[[int], str],
    token_title: str,
    scene_classes: Sequence[str],
) -> None:
    axes[0].imshow(view.photograph)
    _title(axes[0], view.title)
    rest = list(axes[1:])
    if view.prediction is not None:
        prediction, axis = view.prediction, rest.pop(0)
        best, probability = prediction.token_classes[..., 0], prediction.token_probability[..., 0]
        shares = class_shares(best, probability)
        colours = choose_colours([shares])

        def lay(part: Image.Image) -> Image.Image:
            return overlay(part.convert("L").convert("RGB"), best, probability * SUREST_OPACITY, colours)

        axis.imshow(put_in_place(view.photograph, prediction.box, lay))
        _title(axis, token_title)
        worth_naming = [index for index, share in shares.items() if index in colours and share >= LEGEND_SHARE]
        add_legend(axis, {index: colours[index] for index in worth_naming[:LEGEND_CLASSES]}, token_class)
    if view.mask is not None:
        axis = rest.pop(0)
        axis.imshow(lay_classes(view.photograph, view.mask, len(scene_classes)))
        _title(axis, "segmentation")
    if view.relevance is not None and view.prediction is not None:
        for axis, index, values in zip(rest, view.classes, view.relevance, strict=False):
            axis.imshow(put_in_place(view.photograph, view.prediction.box, partial(lay_heat, values=values)))
            name = shorten(token_class(int(index)), 24, placeholder="...")
            _title(axis, f"relevance: {name} {view.prediction.probability[index]:.0%}")


def _shrunk(view: SceneView) -> SceneView:
    """The view no larger than a panel shows."""
    largest = max(view.photograph.size)
    if largest <= SHOWN_PX:
        return view
    size = tuple(max(1, round(side * SHOWN_PX / largest)) for side in view.photograph.size)
    mask = view.mask
    if mask is not None:  # by nearest neighbour: between two ids lies no third class
        rows = ((np.arange(size[1]) + 0.5) * mask.shape[0] / size[1]).astype(int)
        columns = ((np.arange(size[0]) + 0.5) * mask.shape[1] / size[0]).astype(int)
        mask = mask[rows[:, None], columns]
    photograph = view.photograph.resize(size)  # type: ignore[arg-type]
    return replace(view, photograph=photograph, mask=mask)


def _aspect(photograph: Image.Image) -> float:
    return min(max(photograph.height / photograph.width, LOWEST_ASPECT), HIGHEST_ASPECT)


def _entry(colour: NDArray[np.floating[Any]], name: str) -> Line2D:
    return Line2D([], [], marker="s", linestyle="", color=colour, label=shorten(name, 24, placeholder="..."))


def _title(axis: Axes, words: str) -> None:
    axis.set_title(shorten(words, 44, placeholder="..."), fontsize=7, loc="left")
