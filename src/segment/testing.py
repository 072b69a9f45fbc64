"""A segmenter over scenes: every photograph resized, read by windows or whole, and compared with its mask at the mask's own size.

Called by the validations of a training and by the evaluation, which go the same way. Masks are never resized: probabilities are.
Several processes share the scenes and each gets the table of all. Source: section 4.4; Zhou et al. 2017 for ADE20K's measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from ..core.errors import DataError, UnreadableImageError
from ..core.log import logger
from ..data.pixels import normalise
from ..data.scenes import Scene, SceneManifest
from ..engine.device import autocast
from ..engine.processes import ALONE, Processes
from ..engine.stopping import leave_signals_to_parent
from ..engine.validation import share_batches
from ..models.scene_inference import predict_scene
from ..models.segmentation import SegmentationModel
from .measures import Confusion

CLASSES_AT_ONCE = 16  # that are resized to a mask's size: of a large photograph all would take gigabytes


@dataclass(frozen=True)
class Look:
    """How photographs are looked at.

    Attributes:
        mode: slide (windows that overlap) or whole.
        window_px, stride_px: of the windows.
        short_side_px: of a photograph at scale 1.0; None: its own.
        scales, flip: probabilities are the mean over them.
    """

    mode: str
    window_px: int
    stride_px: int
    short_side_px: int | None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def of_recipe(cls, recipe: dict[str, Any]) -> Look:
        """A training's own: single scale, windows of its crops, from one to the next two thirds of that."""
        crop_px = recipe["crop_px"]
        return cls("slide", crop_px, max(crop_px * 2 // 3, 1), recipe["short_side_px"])

    @classmethod
    def of_spec(cls, spec: dict[str, Any]) -> tuple[Look, Look]:
        """Single and multi-scale, of a spec of stage evaluate_segmentation."""
        shared = spec["mode"], spec["window_px"], spec["stride_px"], spec["short_side_px"]
        return cls(*shared), cls(*shared, tuple(spec["scales"]), spec["flip"])

    def resized(self, image: Tensor) -> Tensor:
        """A photograph, uint8 (3, height, width), at scale 1.0: the shorter side is short_side_px."""
        height, width = image.shape[1:]
        if self.short_side_px in (None, min(height, width)):
            return image
        factor = self.short_side_px / min(height, width)
        size = [max(round(side * factor), 1) for side in (height, width)]
        found: Tensor = resize(image, size, antialias=True)
        return found


def predict_classes(
    model: SegmentationModel, image: Tensor, size: tuple[int, int], look: Look, *,
    device: torch.device, precision: torch.dtype, batch: int,
) -> Tensor:  # fmt: skip
    """The class of every pixel.

    Args:
        model: in eval mode, on the device.
        image: uint8 (3, height, width), as `Look.resized` gives it.
        size: height and width of the answer.
        look: how to look.
        device: where the model is.
        precision: of autocast.
        batch: windows of a forward pass.

    Returns:
        int64 (height, width) on the device.
    """
    pixels = normalise(image.to(device)[None], model.mean, model.std)[0]
    with autocast(device, precision):
        probabilities = predict_scene(
            model, pixels, mode=look.mode, window_px=look.window_px, stride_px=look.stride_px,
            scales=look.scales, flip=look.flip, batch=batch,
        )  # fmt: skip
    return best_classes(probabilities, size)


def best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest score of each pixel at another size, the first of equals.

    Args:
        scores: float (classes, rows, cols).
        size: height and width.

    Returns:
        int64 (height, width).
    """
    best = torch.full(size, -torch.inf, device=scores.device)
    classes = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for first in range(0, len(scores), CLASSES_AT_ONCE):
        part = scores[None, first : first + CLASSES_AT_ONCE].float()
        highest, index = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0].max(0)
        better = highest > best
        best = torch.where(better, highest, best)
        classes = torch.where(better, index + first, classes)
    return classes


class ResizedScenes(Dataset[Scene | None]):
    """The scenes of a split as testing sees them; None for one that cannot be decoded.

    Args:
        manifest: of the split.
        machine: segmentation_root and scenes.
        look: how photographs are resized.

    Raises:
        DataError: segmentation_root is missing.
    """

    def __init__(self, manifest: SceneManifest, machine: dict[str, Any], look: Look) -> None:
        self.manifest = manifest
        self._scenes = manifest.open(machine)
        self._look = look

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Scene | None:
        try:
            scene = self._scenes.read(row)
        except UnreadableImageError as error:
            logger.warning("%s: cannot be decoded (%s); left out", self.manifest.image_paths[row], error)
            return None
        return Scene(self._look.resized(scene.image), scene.mask)


@dataclass(frozen=True)
class SceneMeasures:
    """What `measure_scenes` found.

    Attributes:
        confusions: one for each look, in their order.
        images, skipped: scenes counted, and those that could not be decoded.
    """

    confusions: tuple[Confusion, ...]
    images: int
    skipped: int


@torch.no_grad()
def measure_scenes(
    model: SegmentationModel,
    scenes: ResizedScenes,
    looks: Sequence[Look],
    machine: dict[str, Any],
    *,
    device: torch.device,
    precision: torch.dtype,
    processes: Processes = ALONE,
    before_scene: Callable[[], None] = lambda: None,
    seen: Callable[[int, Scene, Tensor], None] = lambda row, scene, classes: None,
) -> SceneMeasures:
    """Runs a segmenter over a split.

    Args:
        model: in any mode, which it has again afterwards.
        scenes: the split.
        looks: at each photograph; all resize it alike.
        machine: micro_batch (windows of a forward pass), workers.
        device: where to measure.
        precision: of autocast.
        processes: that share the scenes, each calling this.
        before_scene: called before each scene, equally often in each process; may raise to leave early.
        seen: called with the row, the scene, and the classes by the last look, int64 (height, width).

    Raises:
        DataError: the split has no readable scene.
    """
    was_training = model.training
    model.eval().to(device)
    rows = share_batches(len(scenes), 1, processes)
    loader = DataLoader(
        scenes, batch_sampler=rows, num_workers=machine["workers"], collate_fn=_only, worker_init_fn=leave_signals_to_parent
    )  # fmt: skip
    confusions = tuple(Confusion(model.num_classes) for _ in looks)
    counts = torch.zeros(2, dtype=torch.int64)  # scenes counted, skipped
    for row, scene in zip(rows, loader, strict=True):
        before_scene()
        if scene is None:
            counts[1] += len(row)
            continue
        mask = scene.mask.to(device)
        for look, confusion in zip(looks, confusions, strict=True):
            size = mask.shape[0], mask.shape[1]
            classes = predict_classes(
                model, scene.image, size, look, device=device, precision=precision, batch=machine["micro_batch"]
            )  # fmt: skip
            confusion.add(classes, mask)
        seen(row[0], scene, classes)
        counts[0] += 1
    model.train(was_training)
    images, skipped = processes.sum(counts).tolist()
    for confusion in confusions:
        confusion.pixels = processes.sum(confusion.pixels)
    if not images:
        raise DataError("the validation split has no readable scene; mend them or segmentation.dataset.")
    return SceneMeasures(confusions, images, skipped)


def _only(items: list[Scene | None]) -> Scene | None:
    """The scene of a batch of one, or of none where another process has one more."""
    return items[0] if items else None
