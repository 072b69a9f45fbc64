"""A page of scenes: photograph, mask and what a segmenter says, side by side, with the classes' colours below.

Called by the evaluation, which hands it every scene; it keeps those that it shows. Draws masks as `data.scene_pictures` does, so a
class has the same colour here as everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.scene_pictures import MARGIN_PX, TEXT_PX, largest_classes, lay_classes, with_legend
from ..data.scenes import IGNORED, Scene, SceneManifest

PANEL_PX = 360  # breadth of a panel
TALLEST = 1.5  # height of a panel, of its breadth; a taller photograph is shown less broad
NAMED_CLASSES = 24  # below the page
COLUMNS = ("photograph", "mask (grey: of no class)", "segmentation")


class ScenePage:
    """The page of a split.

    Args:
        manifest: of the split.
        count: scenes on the page, evenly spread over the split; fewer where it has fewer.
    """

    def __init__(self, manifest: SceneManifest, count: int) -> None:
        total = len(manifest)
        self._manifest = manifest
        self._rows = {number * total // min(count, total) for number in range(min(count, total))}
        self._panels: list[tuple[Image.Image, ...]] = []
        self._masks: list[NDArray[np.int16]] = []

    def add(self, row: int, scene: Scene, classes: Tensor) -> None:
        """Takes a scene, if it is one of those on the page.

        Args:
            row: of the manifest.
            scene: its photograph may have been resized.
            classes: int64 (height, width) of the mask.
        """
        if row not in self._rows:
            return
        mask = scene.mask.numpy()
        predicted = classes.cpu().numpy().astype(np.int16)
        photograph = Image.fromarray(np.ascontiguousarray(scene.image.permute(1, 2, 0).numpy()))
        size = _panel_size(mask.shape[1], mask.shape[0])
        shown = photograph.resize(size, Image.Resampling.BILINEAR)
        small = [_resized(one, size) for one in (mask, predicted)]
        count = len(self._manifest.classes)
        # ids that are ignored are grey in the mask; the segmentation is shown whole, since it has a class there, too
        self._panels.append((shown, *(lay_classes(shown, one, count) for one in small)))
        self._masks += [mask, predicted]

    def drawn(self) -> Image.Image:
        """The page, of the scenes that could be read."""
        font = ImageFont.load_default(TEXT_PX)
        head = TEXT_PX + 2 * MARGIN_PX
        width = len(COLUMNS) * (PANEL_PX + MARGIN_PX) + MARGIN_PX
        heights = [panels[0].height + MARGIN_PX for panels in self._panels]
        page = Image.new("RGB", (width, head + sum(heights)), "white")
        pen = ImageDraw.Draw(page)
        for column, words in enumerate(COLUMNS):
            pen.text((MARGIN_PX + column * (PANEL_PX + MARGIN_PX), MARGIN_PX), words, fill="black", font=font)
        top = head
        for panels, height in zip(self._panels, heights, strict=True):
            for column, panel in enumerate(panels):
                page.paste(panel, (MARGIN_PX + column * (PANEL_PX + MARGIN_PX), top))
            top += height
        classes = self._manifest.classes
        named = largest_classes([mask[mask != IGNORED] for mask in self._masks], len(classes), NAMED_CLASSES)
        return with_legend(page, list(named), classes)


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a panel in px."""
    factor = min(PANEL_PX / width, TALLEST * PANEL_PX / height)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def _resized(mask: NDArray[np.int16], size: tuple[int, int]) -> NDArray[np.int16]:
    """A mask at another size, by nearest neighbour: between two ids lies no third class."""
    rows = ((np.arange(size[1]) + 0.5) * mask.shape[0] / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * mask.shape[1] / size[0]).astype(int)
    shown: NDArray[np.int16] = mask[rows[:, None], columns]
    return shown
