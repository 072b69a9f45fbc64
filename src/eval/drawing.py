"""Label maps drawn over the photographs they belong to: does each cell name what is there?

One row per photograph, one column per annotator; a cell's colour is its best class, the legend gives the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from ..core.files import atomic_path
from ..data.images import decode_image
from ..data.manifest import Manifest
from ..labels import LabelStore
from .figures import STYLE

# Okabe and Ito, without black; further classes of a map are drawn grey
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
OTHERS = "#BBBBBB"


@dataclass(frozen=True)
class MapPicture:
    """A best-class map ready to be laid over its photograph.

    Attributes:
        colours: uint8 (rows, cols, 3).
        legend: colour and class index of the most frequent classes, most frequent first.
    """

    colours: NDArray[np.uint8]
    legend: tuple[tuple[str, int], ...]


def choose_colours(maps: Sequence[NDArray[Any]]) -> dict[int, str]:
    """A colour for each of the most frequent classes of some maps, so that one class looks the same in all of them."""
    counts = Counter(index for best_class in maps for index in best_class.ravel().tolist())
    frequent = [index for index, _ in counts.most_common(len(COLOURS))]
    return dict(zip(frequent, COLOURS, strict=False))


def colour_map(best_class: NDArray[Any], colours: Mapping[int, str] | None = None) -> MapPicture:
    """Colours a map (rows, cols) of class indices; classes without a colour are grey."""
    colours = choose_colours([best_class]) if colours is None else colours
    picture = np.empty((*best_class.shape, 3), dtype=np.uint8)
    picture[:] = _rgb(OTHERS)
    present = [index for index, _ in Counter(best_class.ravel().tolist()).most_common() if index in colours]
    for index in present:
        picture[best_class == index] = _rgb(colours[index])
    return MapPicture(picture, tuple((colours[index], index) for index in present))


def overlay(photograph: Image.Image, colours: NDArray[np.uint8], opacity: float = 0.55) -> Image.Image:
    """Lays a map over a photograph, cells as sharp squares, x to the right and y down."""
    cells = Image.fromarray(colours).resize(photograph.size, Image.Resampling.NEAREST)
    return Image.blend(photograph, cells, opacity)


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


def choose_rows(manifest: Manifest, count: int) -> list[int]:
    """The first photograph of up to `count` classes, evenly spread over the classes present."""
    first: dict[int, int] = {}
    for row, index in enumerate(manifest.class_index.tolist()):
        first.setdefault(index, row)
    rows = list(first.values())
    return [rows[position * len(rows) // min(count, len(rows))] for position in range(min(count, len(rows)))]


def draw_label_maps(
    manifest: Manifest, machine: dict[str, Any], stores: Sequence[LabelStore], path: Path, count: int
) -> None:
    """Draws one page of label maps.

    Args:
        manifest: of the labeled split.
        machine: where the photographs lie.
        stores: one per annotator, one column each.
        path: PNG file to write.
        count: photographs to draw.
    """
    source = manifest.open_source(machine)
    rows = choose_rows(manifest, count)
    columns = len(stores) + 1
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(2.6 * columns, 2.9 * len(rows)), squeeze=False, layout="constrained"
        )
        for line, row in enumerate(rows):
            photograph = decode_image(manifest.read(source, row))
            truth = readable_class(manifest.classes[int(manifest.class_index[row])])
            axes[line][0].imshow(photograph)
            axes[line][0].set_title(f"photograph: {truth}", fontsize=7, loc="left")
            maps = [store[int(manifest.sample_id[row])].classes[..., 0] for store in stores]
            colours = choose_colours(maps)
            for column, (store, best_class) in enumerate(zip(stores, maps, strict=True), start=1):
                picture = colour_map(best_class, colours)
                axes[line][column].imshow(overlay(photograph, picture.colours))
                title = store.annotator if line == 0 else ""
                axes[line][column].set_title(title, fontsize=7, loc="left")
                handles = [
                    Line2D(
                        [], [], marker="s", linestyle="", color=colour, label=readable_class(manifest.classes[index])
                    )
                    for colour, index in picture.legend[:4]
                ]
                axes[line][column].legend(
                    handles=handles, fontsize=5.5, loc="upper center", bbox_to_anchor=(0.5, -0.01), frameon=False, ncols=2,
                    handletextpad=0.1, columnspacing=0.6,
                )  # fmt: skip
        for axis in axes.ravel():
            axis.set_axis_off()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)
