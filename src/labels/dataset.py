"""Photographs with their score maps for a DataLoader: an image data set, its labels, and the batch of both.

Guarantees that each image's label is the one of its own file, placed by the very crop, flip and rotation that made the
image, and that photographs without a label take no part and are counted. Called by training code outside this package;
the package's own training has its own batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.errors import LabelError
from ..core.log import logger
from .geometry import map_affine
from .shards import STATUS_OK
from .store import Label, LabelStore
from .targets import SparseTargets, pooled_target, sparse_targets
from .views import AffineView, WithView

_MOST_SKIPPED = 50  # photographs in a row
# what makes timm.data.ImageDataset raise at the first file that it cannot read: its patience, in newer and older versions
_NO_PATIENCE = {"_max_retries": 1, "_consecutive_errors": _MOST_SKIPPED}


@dataclass(frozen=True)
class LabelMaps:
    """Score maps of a batch, and where each image looks; the `target` of a training loop. Moves and pins like a tensor.

    Attributes:
        class_index: what the data set gave as target, int64 (batch,).
        affine: float32 (batch, 2, 3), normalised view -> normalised score map.
        scores: float16 (batch, rows, cols, k).
        classes: int32 (batch, rows, cols, k).
        tail: float16 (batch, rows, cols) or None.
        labeled: bool (batch,), false where the photograph has no label.
        num_classes: K.
    """

    class_index: Tensor
    affine: Tensor
    scores: Tensor
    classes: Tensor
    tail: Tensor | None
    labeled: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labeled)

    @property
    def unlabeled(self) -> int:
        """Images that contribute nothing."""
        return int((~self.labeled).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LabelMaps:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> LabelMaps:
        """The same batch in pinned memory; DataLoader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def token_targets(self, grid: tuple[int, int], *, exact: bool = False) -> SparseTargets:
        """Targets of the tokens, row by row; `exact` uses the stored tail, see `sparse_targets`.

        Raises:
            LabelError: exact, and the maps have no tail.
        """
        targets = sparse_targets(
            self.scores, self.classes, None, grid, self.num_classes, affine=self.affine, tail=self._tail(exact)
        )
        return targets.without(~self.labeled)

    def class_targets(self, *, exact: bool = False) -> SparseTargets:
        """Targets of the images: each map pooled over the view, see `pooled_target`.

        Raises:
            LabelError: exact, and the maps have no tail.
        """
        target = pooled_target(
            self.scores, self.classes, None, self.num_classes, affine=self.affine, tail=self._tail(exact)
        )
        return target.without(~self.labeled)

    def _tail(self, exact: bool) -> Tensor | None:
        if exact and self.tail is None:
            raise LabelError(
                "exact targets need labels with a tail; these have none. Annotate with the tail, or drop exact."
            )
        return self.tail if exact else None

    def _each(self, change: Any) -> LabelMaps:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})


class LabeledDataset(Dataset[tuple[Any, int, Tensor, Label]]):
    """A map-style image data set with the labels of its photographs.

    Its `transform` is the data set's own, wrapped in `WithView` when it is set; `collate` goes to the DataLoader.

    Args:
        dataset: gives (image, class index) and has a `transform`, as torchvision's ImageFolder and timm's ImageDataset.
        store: the labels.
        paths: of its photographs in the data set's order, relative to the folder that was annotated.
        pixel_only: see `WithView`.

    Raises:
        LabelError: a photograph without a row in the store, or a transform that cannot be followed.
    """

    def __init__(
        self, dataset: Any, store: LabelStore, paths: Sequence[str], pixel_only: tuple[type, ...] = ()
    ) -> None:
        if len(paths) != len(dataset):
            raise LabelError(
                f"{len(paths)} paths for a data set of {len(dataset)} photographs; give one for each, in order."
            )
        self.dataset, self.store = dataset, store
        self._pixel_only = pixel_only
        self._ids = np.array([store.id_for(path) for path in paths], dtype=np.uint64)
        self.transform = dataset.transform

    @property
    def transform(self) -> Any:
        """The data set's transform, wrapped."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        if transform is not None and not isinstance(transform, WithView):
            transform = WithView(transform, self._pixel_only)
        self.dataset.transform = transform

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Any, int, Tensor, Label]:
        index, (view, class_index) = self._read(index)
        if not isinstance(view, AffineView):
            raise LabelError(
                "the data set gave an image without its view; set the transform through LabeledDataset.transform."
            )
        return view.image, int(class_index), view.affine, self.store[int(self._ids[index])]

    def _read(self, index: int) -> tuple[int, Any]:
        """An item and its index: the next one's where timm cannot read a photograph, as timm's own data set does.

        That takes the next one silently, so that its pixels would get the label of this one.
        """
        patience = {name: value for name, value in _NO_PATIENCE.items() if hasattr(self.dataset, name)}
        if not patience:
            return index, self.dataset[index]
        for step in range(_MOST_SKIPPED):
            place = (index + step) % len(self)
            for name, value in patience.items():
                setattr(self.dataset, name, value)
            try:
                return place, self.dataset[place]
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises
                logger.warning("photograph %d of the data set cannot be read (%s); the next one is taken", place, error)
        raise LabelError(
            f"{_MOST_SKIPPED} photographs in a row, from {index} on, cannot be read. Are the data where they were?"
        )

    def collate(self, items: Sequence[tuple[Any, int, Tensor, Label]]) -> tuple[Tensor, LabelMaps]:
        """Images (batch, channels, height, width) in their own type, and their maps."""
        images, class_index, affines, labels = zip(*items, strict=True)
        affine = torch.stack(affines)
        labeled = torch.tensor([label.status == STATUS_OK for label in labels])
        if labeled.any():
            sizes = np.array([label.image_size for label in labels])[labeled.numpy()]
            affine[labeled] = map_affine(self.store.view, sizes, affine[labeled])
        tails = [label.tail for label in labels if label.tail is not None]
        maps = LabelMaps(
            class_index=torch.tensor(class_index),
            affine=affine,
            scores=torch.from_numpy(np.stack([label.scores for label in labels])),
            classes=torch.from_numpy(np.stack([label.classes for label in labels]).astype(np.int32)),
            tail=torch.from_numpy(np.stack(tails)) if tails else None,
            labeled=labeled,
            num_classes=self.store.num_classes,
        )
        return torch.stack(images), maps
