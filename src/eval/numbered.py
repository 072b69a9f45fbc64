"""The crops of an evaluation with the manifest row of each; a photograph that cannot be read is left out of its batch.

Read by `measures` and `agreement`, which look up what belongs to a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..engine.validation import CenterCrops

Item = tuple[int, Tensor | None]


class NumberedCrops(Dataset[Item]):
    """Row and pixels; None for pixels that cannot be read."""

    def __init__(self, crops: CenterCrops) -> None:
        self._crops = crops

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, row: int) -> Item:
        found = self._crops[row]
        return row, None if found is None else found[0]


def collate(items: list[Item]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Tensor]:
    """Rows (batch,) and images (batch, 3, px, px) of what could be read."""
    read = [(row, image) for row, image in items if image is not None]
    images = torch.stack([image for _, image in read]) if read else torch.empty(0)
    return np.array([row for row, _ in read], dtype=np.int64), images
