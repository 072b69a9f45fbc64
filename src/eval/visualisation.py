"""What a model sees in photographs, as one page: its class of every token, and what its best classes rest on.

One row per photograph: the part that the model looks at, the class map, and a relevance map for each of the best classes. What a
segmenter sees is made here too, and drawn by `scene_page`. Called by `visualise_command`. Source: paper appendix C, Figs. 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import DataError
from ..core.files import atomic_path
from ..data.images import UnreadableImageError, decode_image, resize, to_tensor
from ..models import TokenModel
from ..models.scene_inference import predict_scene
from ..models.segmentation import LoadedSegmenter
from .drawing import (
    HEAT,
    LEGEND_CLASSES,
    LEGEND_IN,
    LEGEND_SHARE,
    PANEL_IN,
    SUREST_OPACITY,
    add_legend,
    choose_colours,
    class_shares,
    lay_heat,
    overlay,
)
from .prediction import Prediction, Preprocessing, Unreadable, predict_photographs
from .relevance import relevance_maps
from .style import PHOTOGRAPHS

SCALE_IN = 0.45  # room for the colour scale below the page
NOTE = "Class of a token: colour; its probability: opacity."
RELEVANCE_NOTE = " Relevance for a class: each map from its least to its most."


@dataclass(frozen=True)
class Sight:
    """What a model sees in one photograph.

    Attributes:
        prediction: class probabilities and class map.
        classes: int64 (n,), the best classes, best first.
        relevance: float32 (n, rows, cols), of those classes; None where the model's kind has none.
    """

    prediction: Prediction
    classes: NDArray[np.int64]
    relevance: NDArray[np.float32] | None


def look_at(
    model: TokenModel,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    count: int,
    with_relevance: bool,
    device: torch.device,
) -> list[Sight]:
    """Classifies photographs and explains their best classes, in float32.

    Args:
        model: moved to the device and set to eval mode.
        paths: image files.
        preprocessing: the part of each that is looked at.
        count: best classes of each.
        with_relevance: make relevance maps, which `why_unsupported` must allow.
        device: where the network runs.

    Raises:
        DataError: a photograph cannot be decoded.
    """
    sights = []
    for result in predict_photographs(
        model, paths, preprocessing, top=1, batch_size=1, workers=1, device=device, precision=torch.float32
    ):
        if isinstance(result, Unreadable):
            raise DataError(f"{result.path}: cannot be decoded ({result.reason}). Leave it out or mend it.")
        best = (-result.probability).argsort(kind="stable")[:count]
        relevance = None
        if with_relevance:
            images = result.image[None].to(device)
            relevance = relevance_maps(model, images, torch.from_numpy(best)[None])[0].cpu().numpy()
        sights.append(Sight(result, best, relevance))
    return sights


def segment_photographs(
    segmenter: LoadedSegmenter, paths: Sequence[Path], *, device: torch.device
) -> Iterator[tuple[Image.Image, NDArray[np.int16]]]:
    """Gives every pixel of photographs a class, one after the other: single scale, windows of the training's crop.

    Args:
        segmenter: its model is moved to the device.
        paths: image files.
        device: where the network runs.

    Yields:
        the upright photograph, RGB, at the shorter side that the segmenter was trained for, and its classes: int16 (height,
        width), from 0.

    Raises:
        DataError: a photograph cannot be decoded.
    """
    model, config = segmenter.model.to(device), segmenter.config
    for path in paths:
        try:
            photograph = decode_image(path.read_bytes())
        except (UnreadableImageError, OSError) as error:
            raise DataError(f"{path}: cannot be decoded ({error}). Leave it out or mend it.") from None
        if config.short_side_px is not None:
            scale = config.short_side_px / min(photograph.size)
            width, height = (max(1, round(side * scale)) for side in photograph.size)
            photograph = resize(photograph, width, height, "bilinear")
        probability = predict_scene(
            model,
            to_tensor(photograph, config.mean, config.std).to(device),
            mode="slide",
            window_px=config.crop_px,
            stride_px=max(1, config.crop_px * 2 // 3),
        )
        yield photograph, probability.argmax(0).cpu().numpy().astype(np.int16)


def draw_sights(sights: Sequence[Sight], class_name: Callable[[int], str], path: Path, *, map_title: str) -> None:
    """Draws one page to a PNG file.

    Args:
        sights: of one model, one row each.
        class_name: words for a class index.
        path: file to write.
        map_title: over the class maps.

    Raises:
        OutputError: the file cannot be written.
    """
    explained = sights[0].relevance is not None
    columns = 2 + (len(sights[0].classes) if explained else 0)
    size = (PANEL_IN * columns, (PANEL_IN + LEGEND_IN) * len(sights) + SCALE_IN)
    with plt.rc_context(PHOTOGRAPHS):
        figure, axes = plt.subplots(len(sights), columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.ravel():
            axis.set_axis_off()
        for line, sight in zip(axes, sights, strict=True):
            _draw_line(line, sight, class_name, map_title)
        if explained:
            scale = figure.colorbar(
                plt.cm.ScalarMappable(cmap=HEAT),
                ax=axes,
                location="bottom",
                shrink=0.3,
                aspect=40,
                pad=0.01,
                anchor=(0.85, 0),
            )
            scale.set_ticks([0, 1], labels=["least relevant", "most relevant"])
            scale.ax.tick_params(labelsize=5.5, length=0)
        figure.supxlabel(NOTE + RELEVANCE_NOTE * explained, fontsize=5.5, x=0.01, ha="left")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _draw_line(axes: Sequence[Axes], sight: Sight, class_name: Callable[[int], str], map_title: str) -> None:
    prediction = sight.prediction
    axes[0].imshow(prediction.seen)
    _title(axes[0], prediction.path.name)

    best_class, probability = prediction.token_classes[..., 0], prediction.token_probability[..., 0]
    shares = class_shares(best_class, probability)
    colours = choose_colours([shares])
    grey = prediction.seen.convert("L").convert("RGB")  # so that an orange fish is not taken for an orange class
    axes[1].imshow(overlay(grey, best_class, probability * SUREST_OPACITY, colours))
    _title(axes[1], map_title)
    named = [index for index, share in shares.items() if index in colours and share >= LEGEND_SHARE]
    add_legend(axes[1], {index: colours[index] for index in named[:LEGEND_CLASSES]}, class_name)

    if sight.relevance is not None:
        for axis, index, values in zip(axes[2:], sight.classes, sight.relevance, strict=True):
            axis.imshow(lay_heat(prediction.seen, values))
            _title(
                axis, f"{shorten(class_name(int(index)), 30, placeholder='...')} {prediction.probability[index]:.0%}"
            )


def _title(axis: Axes, words: str) -> None:
    axis.set_title(shorten(words, 44, placeholder="..."), fontsize=7, loc="left")
