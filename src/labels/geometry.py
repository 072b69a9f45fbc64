"""Affine maps between view, photograph and score map, and how much of each map cell a token sees.

Coordinates are normalised, x right, y down, [0, 1] over the whole picture. For axis-aligned boxes the weights are those of
torchvision.ops.roi_align(map, box, output_size, sampling_ratio=-1, aligned=True), whose arithmetic is followed step by
step: the number of points per token is a ceiling, which one rounding more or less would change. General affine maps
(rotation, shear) sample as many points per token as the extent of the token in cells asks for. Called by `targets`.

`geometry="released"` is the released code's reading, for comparison: the box's x and y swapped, the map mirrored in place of
the tokens, tokens of at least one cell (RoIAlign with aligned=False), boxes taken of the map whatever its view.

Source: RoIAlign, He et al. 2017, section 3; tlt 0.2.0, data/mixup.py. Differs from the latter unless it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import LabelError

LARGEST_COORDINATE = 16.0  # a normalised coordinate beyond is taken for pixels or cells
IMAGES_CPU = 4  # resampled at once
ROUNDING = 1e-6  # a rotated token whose extent is this close above a whole number of cells gets no further point

ArrayLike = Tensor | NDArray[Any]
Geometry = Literal["exact", "released"]


class ShapeError(LabelError, ValueError):
    """Arrays for targets whose axes or values do not fit each other."""


def as_float(values: ArrayLike, device: torch.device | None = None) -> Tensor:
    """A floating-point tensor of at least 32 bits, on a device."""
    tensor = torch.as_tensor(values, device=device)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def view_affine(boxes: ArrayLike, flipped: ArrayLike | None = None) -> Tensor:
    """The map of a crop, flipped left to right after it was cut out or not.

    Args:
        boxes: (batch, 4), normalised x0, y0, x1, y1 of the crop in the photograph.
        flipped: bool (batch,).

    Returns:
        (batch, 2, 3), normalised view -> normalised photograph.

    Raises:
        ShapeError: other axes, or a box without extent.
    """
    corners = checked_boxes(boxes)
    x0, y0, x1, y1 = corners.unbind(-1)
    mirrored = checked_flips(flipped, corners)
    zero = torch.zeros_like(x0)
    scale_x = torch.where(mirrored, x0 - x1, x1 - x0)
    shift_x = torch.where(mirrored, x1, x0)
    return torch.stack([scale_x, zero, shift_x, zero, y1 - y0, y0], -1).view(-1, 2, 3)


def released_affine(boxes: ArrayLike, flipped: ArrayLike | None = None) -> Tensor:
    """The map of a crop and a flip as the released code reads it: x and y of the box swapped, the map mirrored.

    Args: as `view_affine`.

    Returns:
        (batch, 2, 3), normalised view -> normalised map, for `geometry="released"`.

    Raises:
        ShapeError: as `view_affine`.
    """
    corners = checked_boxes(boxes)
    mirrored = checked_flips(flipped, corners)
    x0, y0, x1, y1 = corners.unbind(-1)
    zero = torch.zeros_like(x0)
    scale_x = torch.where(mirrored, y0 - y1, y1 - y0)
    shift_x = torch.where(mirrored, 1 - y0, y0)
    return torch.stack([scale_x, zero, shift_x, zero, x1 - x0, torch.where(mirrored, 1 - x1, x0)], -1).view(-1, 2, 3)


def centre_crop_affine(image_size: ArrayLike) -> Tensor:
    """The map from a photograph to a score map that covers its largest centred square.

    Args:
        image_size: (batch, 2), height and width of the photograph in px.

    Returns:
        float64 (batch, 2, 3), normalised photograph -> normalised score map.

    Raises:
        ShapeError: other axes, or a size below 1 px.
    """
    size = torch.as_tensor(np.asarray(image_size)).to(torch.float64)
    if size.ndim != 2 or size.shape[1] != 2:
        raise ShapeError(f"image_size (batch, height and width) is {tuple(size.shape)}, expected (batch, 2).")
    if size.numel() and not bool((size >= 1).all()):
        raise ShapeError("image_size has a side below 1 px; labels of unreadable photographs have no geometry.")
    height, width = size.unbind(-1)
    side = torch.minimum(height, width)
    zero = torch.zeros_like(side)
    scale_x, scale_y = width / side, height / side
    entries = [scale_x, zero, (1 - scale_x) / 2, zero, scale_y, (1 - scale_y) / 2]
    return torch.stack(entries, -1).view(-1, 2, 3)


def map_affine(view: str, image_size: ArrayLike, affine: ArrayLike) -> Tensor:
    """The map of a training view onto score maps, which is what `sparse_targets(..., affine=)` takes.

    Args:
        view: of the score maps, `LabelStore.view`.
        image_size: (batch, 2), height and width of the photographs in px.
        affine: (batch, 2, 3), normalised view -> normalised photograph.

    Returns:
        (batch, 2, 3), normalised view -> normalised score map, in the type of `affine` (at least float32).

    Raises:
        ShapeError: other axes, or a view that is not known.
    """
    maps = checked_affine(affine)
    if view == "squash":
        return maps
    if view != "centre_crop":
        raise ShapeError(f"view {view!r}, expected squash or centre_crop as LabelStore.view gives it.")
    onto_map = centre_crop_affine(image_size).to(maps.device)
    if len(onto_map) != len(maps):
        raise ShapeError(f"image_size is of {len(onto_map)} photographs, affine of {len(maps)}.")
    return compose(onto_map, maps).to(maps.dtype)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies `inner` and then `outer`.

    Args:
        outer, inner: (batch, 2, 3); a batch of one goes with any other.

    Returns:
        (batch, 2, 3) in the wider of the two types.
    """
    dtype = torch.promote_types(outer.dtype, inner.dtype)
    outer, inner = outer.to(dtype), inner.to(dtype)
    linear = outer[..., :2] @ inner
    return torch.cat([linear[..., :2], linear[..., 2:] + outer[..., 2:]], dim=-1)


def token_centres(affine: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where the middle of each token lies in the photograph; (batch, tokens, 2) normalised x, y, row by row."""
    rows, cols = grid
    u = (torch.arange(cols, device=affine.device, dtype=affine.dtype) + 0.5) / cols
    v = (torch.arange(rows, device=affine.device, dtype=affine.dtype) + 0.5) / rows
    centres = torch.stack([u.expand(rows, cols), v[:, None].expand(rows, cols), torch.ones_like(u).expand(rows, cols)])
    return (affine @ centres.flatten(1)).transpose(1, 2)


@dataclass(frozen=True)
class Sampling:
    """How much each token takes from each cell of the map; rows and columns apart, as upright views allow.

    Attributes:
        along_y: (batch, token rows, map rows).
        along_x: (batch, token cols, map cols).
        turned: int64 (n,), the images whose view is rotated or sheared, for which the two above say nothing.
        weights: (n, tokens, cells) of these.
    """

    along_y: Tensor
    along_x: Tensor
    turned: Tensor
    weights: Tensor

    def dense(self) -> Tensor:
        """(batch, tokens, cells), row by row."""
        weights = (self.along_y[:, :, None, :, None] * self.along_x[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)
        return weights.index_copy(0, self.turned, self.weights)

    def mass(self) -> Tensor:
        """(batch, tokens): sum over the cells, 1 for a token inside the map."""
        mass = (self.along_y.sum(-1)[:, :, None] * self.along_x.sum(-1)[:, None]).flatten(1)
        return mass.index_copy(0, self.turned, self.weights.sum(-1))

    def resample(self, values: Tensor, places: Tensor, channels: int) -> Tensor:
        """Values of the tokens, from a map that names k of its channels in each cell and is zero in the others.

        Args:
            values: (batch, rows, cols, k).
            places: int64 of the same shape, the channel of each value.
            channels: of the map.

        Returns:
            (batch, tokens, channels) in the type of the values.
        """
        along_y, along_x, weights = (part.to(values.dtype) for part in (self.along_y, self.along_x, self.weights))
        batch, cols, token_rows = len(values), values.shape[2], along_y.shape[1]
        tokens = values.new_empty(batch, token_rows, along_x.shape[1], channels)
        # a few images at a time on a CPU, so that the map with all its zeros stays in the cache
        step = IMAGES_CPU if values.device.type == "cpu" else max(batch, 1)
        for start in range(0, batch, step):
            part = slice(start, start + step)
            cells = values.new_zeros(*values[part].shape[:3], channels).scatter_(3, places[part], values[part])
            by_row = (along_y[part] @ cells.flatten(2)).view(-1, token_rows, cols, channels)
            tokens[part] = along_x[part, None] @ by_row
        if len(self.turned):
            chosen = values[self.turned]
            cells = values.new_zeros(*chosen.shape[:3], channels).scatter_(3, places[self.turned], chosen)
            tokens.flatten(1, 2)[self.turned] = weights @ cells.flatten(1, 2)
        return tokens.flatten(1, 2)


def sampling(
    boxes: ArrayLike | None,
    grid: tuple[int, int],
    map_size: tuple[int, int],
    flipped: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    geometry: Geometry = "exact",
) -> Sampling:
    """How much each token takes from each cell of the map.

    Args:
        boxes: (batch, 4), normalised x0, y0, x1, y1; None with `affine`.
        grid: rows and columns of the tokens.
        map_size: rows and columns of the score map.
        flipped: bool (batch,), with boxes.
        affine: (batch, 2, 3), normalised view -> normalised map, instead of boxes and flipped.
        geometry: `released` reads boxes as the released code does; an affine is read as it is (`released_affine` has the
            swap in it), but for upright tokens of at least one cell.

    Raises:
        ShapeError: other axes, boxes without extent, coordinates that are not normalised, boxes and affine together.
    """
    if (boxes is None) == (affine is None):
        raise ShapeError("give either boxes (batch, 4) or affine (batch, 2, 3), and not both.")
    if geometry not in ("exact", "released"):
        raise ShapeError(f"geometry is {geometry!r}, expected 'exact' or 'released'.")
    (rows, cols), least = map_size, 1.0 if geometry == "released" else 0.0
    if boxes is not None:
        corners = checked_boxes(boxes)
        mirrored = checked_flips(flipped, corners)
        x0, y0, x1, y1 = corners.unbind(-1)
        if geometry == "exact":
            along_y = _axis_weights(y0, y1, grid[0], rows)
            along_x = _axis_weights(x0, x1, grid[1], cols)
            along_x = torch.where(mirrored[:, None, None], along_x.flip(1), along_x)
        else:
            # the crop of a mirrored photograph, x in place of y, both scaled by the map's columns; then the map's own mirror
            left, right = torch.where(mirrored, 1 - x1, x0), torch.where(mirrored, 1 - x0, x1)
            along_y = _axis_weights(left, right, grid[0], rows, least, scale=cols)
            along_x = _axis_weights(y0, y1, grid[1], cols, least)
            along_x = torch.where(mirrored[:, None, None], along_x.flip(2), along_x)
        none = torch.zeros(0, dtype=torch.int64, device=corners.device)
        return Sampling(along_y, along_x, none, corners.new_zeros(0, grid[0] * grid[1], rows * cols))
    if flipped is not None:
        raise ShapeError("flipped goes with boxes; an affine map contains its flip.")
    assert affine is not None
    maps = checked_affine(affine)
    upright = (maps[:, 0, 1] == 0) & (maps[:, 1, 0] == 0) & (maps[:, 0, 0] != 0) & (maps[:, 1, 1] != 0)
    turned = (~upright).nonzero()[:, 0]
    return Sampling(
        _axis_of_affine(maps[:, 1, 1], maps[:, 1, 2], grid[0], rows, least),
        _axis_of_affine(maps[:, 0, 0], maps[:, 0, 2], grid[1], cols, least),
        turned,
        _affine_weights(maps[turned], grid, map_size),
    )


def sampling_weights(
    boxes: ArrayLike | None,
    grid: tuple[int, int],
    map_size: tuple[int, int],
    flipped: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    geometry: Geometry = "exact",
) -> Tensor:
    """How much each token takes from each cell of the map, as one array.

    Args: as `sampling`.

    Returns:
        (batch, tokens, cells), row by row, in the type of the boxes (at least float32). They sum to 1 for a token inside the map,
        to less where points fall more than half a cell's breadth outside of it, as in roi_align.

    Raises:
        ShapeError: as `sampling`.
    """
    return sampling(boxes, grid, map_size, flipped, affine, geometry).dense()


def checked_boxes(boxes: ArrayLike) -> Tensor:
    """Boxes as a floating-point tensor.

    Raises:
        ShapeError: not (batch, 4), without extent, not finite, or in pixels.
    """
    corners = as_float(boxes)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ShapeError(f"boxes (batch, x0 y0 x1 y1) are {tuple(corners.shape)}, expected (batch, 4).")
    if not bool((corners[:, 2:] > corners[:, :2]).all()):
        raise ShapeError("boxes (x0, y0, x1, y1) need x0 < x1 and y0 < y1; a flip goes into `flipped`.")
    _check_range(corners, "boxes")
    return corners


def checked_affine(affine: ArrayLike) -> Tensor:
    """Affine maps as a floating-point tensor.

    Raises:
        ShapeError: not (batch, 2, 3), not finite, or in pixels.
    """
    maps = as_float(affine)
    if maps.ndim != 3 or maps.shape[1:] != (2, 3):
        raise ShapeError(f"affine (batch, x and y, u v 1) is {tuple(maps.shape)}, expected (batch, 2, 3).")
    _check_range(maps, "affine")
    return maps


def checked_flips(flipped: ArrayLike | None, boxes: Tensor) -> Tensor:
    """Flips as bool (batch,) on the boxes' device.

    Raises:
        ShapeError: other axes.
    """
    if flipped is None:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    mirrored = torch.as_tensor(flipped, device=boxes.device).to(torch.bool)
    if mirrored.shape != boxes.shape[:1]:
        raise ShapeError(f"flipped (batch,) is {tuple(mirrored.shape)}, expected ({len(boxes)},) as the boxes.")
    return mirrored


def _check_range(values: Tensor, name: str) -> None:
    if values.numel() and not bool((values.abs() <= LARGEST_COORDINATE).all()):
        raise ShapeError(
            f"{name} must be finite and normalised to [0, 1] over the photograph; found values up to "
            f"{float(values.abs().max()):g}. Divide pixels by the photograph's width and height."
        )


def _axis_of_affine(slope: Tensor, shift: Tensor, tokens: int, cells: int, least: float) -> Tensor:
    """Weights along one axis of an affine map without rotation and shear: those of its box; (batch, tokens, cells)."""
    end = shift + slope
    weights = _axis_weights(torch.minimum(shift, end), torch.maximum(shift, end), tokens, cells, least)
    return torch.where((slope < 0)[:, None, None], weights.flip(1), weights)


def _axis_weights(
    low: Tensor, high: Tensor, tokens: int, cells: int, least: float = 0.0, scale: int | None = None
) -> Tensor:
    """Weights along one axis, of an extent of at least `least` cells; (batch, tokens, cells).

    The order of operations is roi_align's, so that rounding and therefore the ceiling come out the same.
    """
    scale = cells if scale is None else scale
    start = low * scale - 0.5
    extent = ((high * scale - 0.5) - start).clamp(min=least)
    bin_size = extent / tokens
    points = torch.ceil(bin_size).clamp(min=1)  # (batch,)
    most = _largest(points)
    token = torch.arange(tokens, device=low.device, dtype=low.dtype)
    point = torch.arange(most, device=low.device, dtype=low.dtype)
    offsets = (point + 0.5) * bin_size[:, None] / points[:, None]  # (batch, points)
    positions = (start[:, None] + token * bin_size[:, None])[:, :, None] + offsets[:, None]  # (batch, tokens, points)
    used = (point < points[:, None])[:, None, :, None]
    return (_tent(positions, cells) * used).sum(2) / points[:, None, None]


def _affine_weights(affine: Tensor, grid: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Weights of general maps; (batch, tokens, cells)."""
    (rows, cols), (map_rows, map_cols) = grid, map_size
    to_cells = affine * affine.new_tensor([map_cols, map_rows])[:, None]
    # extent of a token along the view's axes, in cells: length of the axes' images
    extents = torch.linalg.vector_norm(to_cells[..., :2], dim=1) / affine.new_tensor([cols, rows])  # (batch, u and v)
    points = torch.ceil(extents * (1 - ROUNDING)).clamp(min=1)
    u, used_u = _view_points(points[:, 0], cols)  # (batch, cols, points), (batch, points)
    v, used_v = _view_points(points[:, 1], rows)
    u, v = u[:, None, :, None, :], v[:, :, None, :, None]  # (batch, rows, cols, points in v, points in u)
    x, y = (
        to_cells[:, axis, 0, None, None, None, None] * u
        + to_cells[:, axis, 1, None, None, None, None] * v
        + to_cells[:, axis, 2, None, None, None, None]
        - 0.5
        for axis in (0, 1)
    )
    used = (used_v[:, :, None] & used_u[:, None, :]).flatten(1)[:, None, :, None]  # (batch, 1, points, 1)
    at_y = _tent(y.flatten(3).flatten(1, 2), map_rows) * used  # (batch, tokens, points, map rows)
    at_x = _tent(x.flatten(3).flatten(1, 2), map_cols)
    weights = torch.einsum("btpr,btpc->btrc", at_y, at_x) / points.prod(-1)[:, None, None, None]
    return weights.flatten(2)


def _view_points(points: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Normalised positions of the sampled points along one axis of the view, and which of them count."""
    token = torch.arange(tokens, device=points.device, dtype=points.dtype)
    point = torch.arange(_largest(points), device=points.device, dtype=points.dtype)
    inside = (point + 0.5) / points[:, None]  # (batch, points), in tokens
    return (token[:, None] + inside[:, None]) / tokens, point < points[:, None]


def _largest(points: Tensor) -> int:
    return int(points.max()) if points.numel() else 1


def _tent(positions: Tensor, cells: int) -> Tensor:
    """Bilinear weights of each cell along one axis, with a last axis of cells.

    A position up to one cell outside takes the border cell, further out it takes nothing, as in roi_align.
    """
    within = (positions >= -1) & (positions <= cells)
    cell = torch.arange(cells, device=positions.device, dtype=positions.dtype)
    distance = (positions.clamp(0, cells - 1)[..., None] - cell).abs()
    return (1 - distance).clamp(min=0) * within[..., None]
