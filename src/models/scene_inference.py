"""A segmenter on a whole photograph: sliding windows or all at once, at one or several scales, with mirror images.

Called by evaluation, prediction and visualisation. Guarantees that windows leave no pixel out, and that sums are in single
precision whatever the model computes in. Reads and resizes no files: the photograph comes in its testing size.
Source: paper section 4.4 (interpolation rates); window positions and what is averaged as in mmsegmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, unknown_name
from .segmentation import SegmentationModel
from .tokens import eval_mode

MODES = ("slide", "whole")


@torch.no_grad()
def predict_scene(
    model: SegmentationModel, image: Tensor, *, mode: str, window_px: int, stride_px: int,
    scales: Sequence[float] = (1.0,), flip: bool = False, batch: int = 1,
) -> Tensor:  # fmt: skip
    """Probabilities of the classes for every pixel: the mean of the softmax over scales and mirror images.

    Overlapping windows of one scale are averaged as logits. A scale s costs s^2 times the pixels, which attention over the
    whole image (`whole`) pays with s^4, windows with s^2; `flip` doubles it. The paper's five scales with mirror images are
    about 17 passes of one. Memory: a sum of classes x height x width float32 at the largest scale, twice.

    Args:
        model: its mode is left as it was.
        image: float (3, height, width), normalised with the model's `mean` and `std`.
        mode: `slide`: square windows, averaged where they overlap; `whole`: the image in one pass.
        window_px: side of a window; an image that is smaller along a side is taken whole there.
        stride_px: from window to window, at most `window_px`; the last one ends with the image. Not read with `whole`.
        scales: factors of height and width.
        flip: also the mirror image of each scale.
        batch: windows in one pass; more need more memory and change nothing but rounding.

    Returns:
        float32 (classes, height, width) on the model's device; sums to 1 over the classes.

    Raises:
        ConfigError: an unknown mode, or scales, window or stride out of range.
        ValueError: an image of another shape.
    """
    _check(mode, window_px, stride_px, scales, batch)
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"image is {tuple(image.shape)}; expected (3, height, width)")
    image = image.to(next(model.parameters()).device)
    size = tuple(image.shape[1:])
    total = torch.zeros(model.num_classes, *size, device=image.device)
    with eval_mode(model):
        for scale in scales:
            scaled = image if scale == 1.0 else _resize(image, [max(round(side * scale), 1) for side in size])
            window, stride = (window_px, stride_px) if mode == "slide" else (max(scaled.shape[1:]),) * 2
            for mirrored in (False, True) if flip else (False,):
                logits = _slide(model, scaled.flip(2) if mirrored else scaled, window, stride, batch)
                logits = logits.flip(2) if mirrored else logits
                if logits.shape[1:] != size:
                    logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
                total += logits.softmax(dim=0)
    return total / (len(scales) * (2 if flip else 1))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side: every `stride` pixels, the last one so that it ends with the image.

    Args:
        length: pixels of the side.
        window, stride: pixels.
    """
    last = max(length - window, 0)
    return [min(step * stride, last) for step in range(math.ceil(last / stride) + 1)]


def _slide(model: SegmentationModel, image: Tensor, window: int, stride: int, batch: int) -> Tensor:
    """float32 (classes, height, width): mean logits of the windows that see a pixel."""
    height, width = image.shape[1:]
    total = torch.zeros(model.num_classes, height, width, device=image.device)
    seen = torch.zeros(height, width, device=image.device)
    places = [(y, x) for y in window_starts(height, window, stride) for x in window_starts(width, window, stride)]
    for some in _parts(places, batch):
        logits = model(torch.stack([image[:, y : y + window, x : x + window] for y, x in some]))
        for (y, x), found in zip(some, logits.float(), strict=True):
            total[:, y : y + window, x : x + window] += found
            seen[y : y + window, x : x + window] += 1
    return total / seen


def _parts(places: list[tuple[int, int]], batch: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(places), batch):
        yield places[start : start + batch]


def _resize(image: Tensor, size: list[int]) -> Tensor:
    """Bilinear with anti-aliasing, as photographs are resized in training."""
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def _check(mode: str, window_px: int, stride_px: int, scales: Sequence[float], batch: int) -> None:
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES, where="testing")
    if mode == "slide" and not 1 <= stride_px <= window_px:
        raise ConfigError(f"stride_px is {stride_px}; expected 1 to window_px {window_px}, or pixels would be left out")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ConfigError(f"scales are {list(scales)}; expected at least one number above 0")
    if batch < 1:
        raise ConfigError(f"batch is {batch}; a pass takes at least 1 window")
