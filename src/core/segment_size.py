"""Parameters and multiply-adds of the heads of segmentation, and how often testing runs them; without torch.

Called by the plan, for its estimates. Counts the convolutions of `models/segmentation_heads`, which does the same in torch;
norms, ReLUs, pooling and resizing are left out of the multiply-adds, and a test compares the parameters exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Convolution:
    """One convolution: `cells` are those of its output, or of its input where it is transposed."""

    cells: float
    weights: int
    others: int  # values of its norm or bias

    @property
    def parameters(self) -> int:
        return self.weights + self.others


def head_multiply_adds(
    head: Mapping[str, Any], width: int, tokens: float, num_classes: int, *, training: bool
) -> float:
    """10^9 multiply-adds of the head of one image.

    Args:
        head: as a spec has it.
        width: channels of the backbone.
        tokens: of the image.
        num_classes: of a pixel.
        training: with the auxiliary head.
    """
    parts = _convolutions(head, width, tokens, num_classes, auxiliary=training)
    return sum(part.cells * part.weights for part in parts) / 1e9


def head_parameters(head: Mapping[str, Any], width: int, num_classes: int) -> float:
    """10^6 learnable values of the head with its auxiliary one; arguments as for `head_multiply_adds`."""
    return sum(part.parameters for part in _convolutions(head, width, 1.0, num_classes, auxiliary=True)) / 1e6


def count_windows(height: int, width: int, testing: Mapping[str, Any], scale: float) -> float:
    """Forward passes of one window's size over a photograph in one scale; of `whole` its area in windows.

    Args:
        height, width: of the photograph, pixels.
        testing: as a spec has it.
        scale: of the photograph whose shorter side is short_side_px.
    """
    if testing["short_side_px"] is not None:
        scale *= testing["short_side_px"] / min(height, width)
    sides, window, stride = (height * scale, width * scale), testing["window_px"], testing["stride_px"]
    if testing["mode"] == "whole":
        return float(math.prod(sides) / window**2)
    return float(math.prod(1 + max(0, math.ceil((side - window) / stride)) for side in sides))


def count_passes(size: Sequence[int], testing: Mapping[str, Any]) -> float:
    """Forward passes of one window's size that testing one photograph of (height, width) pixels takes.

    The single scale, and all scales and flips where those are more than it.
    """
    height, width = size
    single = count_windows(height, width, testing, 1.0)
    views = 2 if testing["flip"] else 1
    multi = sum(views * count_windows(height, width, testing, scale) for scale in testing["scales"])
    return single if views == 1 and list(testing["scales"]) == [1.0] else single + multi


def _convolutions(
    head: Mapping[str, Any], width: int, tokens: float, num_classes: int, *, auxiliary: bool
) -> Iterator[_Convolution]:
    levels, channels = head["levels"], head["channels"]
    scales, last = levels["scales"], len(levels["scales"]) - 1
    widths = [*[width] * last, levels["deepest_channels"] or width]
    cells = [tokens * scale**2 for scale in scales]
    small = head["auxiliary"] if auxiliary else None
    read = set(range(last + 1)) if head["kind"] == "upernet" else {last}
    for level in sorted(read | ({head["auxiliary"]["level"]} if head["auxiliary"] else set())):
        if scales[level] > 1:  # transposed: each of its inputs makes scale^2 outputs
            yield _Convolution(tokens, int(width**2 * scales[level] ** 2), 2 * width)
        yield _convolution(cells[level], width, widths[level], 1)
    if head["kind"] == "fcn":
        yield from _fcn(
            cells[last], widths[last], num_classes, channels, head["convolutions"], head["concatenate_input"]
        )
    else:
        for size in head["pool_sizes"]:
            yield _convolution(size**2, widths[last], channels, 1)
        yield _convolution(cells[last], widths[last] + len(head["pool_sizes"]) * channels, channels, 3)
        for level in range(last):
            yield _convolution(cells[level], widths[level], channels, 1)
            yield _convolution(cells[level], channels, channels, 3)
        yield _convolution(cells[0], (last + 1) * channels, channels, 3)
        yield _Convolution(cells[0], channels * num_classes, num_classes)
    if small:
        level = small["level"]
        yield from _fcn(cells[level], widths[level], num_classes, small["channels"], small["convolutions"], False)


def _fcn(
    cells: float, source: int, num_classes: int, channels: int, convolutions: int, concatenate: bool
) -> Iterator[_Convolution]:
    for number in range(convolutions):
        yield _convolution(cells, channels if number else source, channels, 3)
    if concatenate:
        yield _convolution(cells, source + channels, channels, 3)
    yield _Convolution(cells, channels * num_classes, num_classes)


def _convolution(cells: float, source: int, channels: int, kernel: int) -> _Convolution:
    """With batch norm and no bias."""
    return _Convolution(cells, kernel**2 * source * channels, 2 * channels)
