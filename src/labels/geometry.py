"""Where a token looks: affine maps between views and photographs, and the weights that sample a score map through them.

Coordinates are normalised, x right and y down, in [0, 1]; a map's cell (row r, column c) is centred at ((c + 0.5) / cols,
(r + 0.5) / rows). For an axis-aligned box the weights are those of RoIAlign (He et al. 2017, Mask R-CNN) with
`aligned=True` and one sample per map cell and token, torchvision's `sampling_ratio=-1`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def view_affine(boxes: Tensor, flipped: Tensor | None = None) -> Tensor:
    """Affine map of a cropped and perhaps flipped view.

    Args:
        boxes: float (batch, 4), x0 y0 x1 y1 of the crop, normalised to the photograph.
        flipped: bool (batch,), mirrored left to right.

    Returns:
        float (batch, 2, 3), normalised view -> normalised photograph.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    zero = torch.zeros_like(x0)
    scale_x, shift_x = x1 - x0, x0
    if flipped is not None:
        scale_x, shift_x = torch.where(flipped, x0 - x1, x1 - x0), torch.where(flipped, x1, x0)
    return torch.stack((torch.stack((scale_x, zero, shift_x), -1), torch.stack((zero, y1 - y0, y0), -1)), dim=-2)


def center_crop_affine(image_size: Tensor) -> Tensor:
    """Map of a photograph onto the score map of its largest central square (view `center_crop`).

    Args:
        image_size: (batch, 2), height and width in pixels.

    Returns:
        float (batch, 2, 3), normalised photograph -> normalised score map; outside [0, 1] there is no label.
    """
    height, width = image_size.to(torch.float64).unbind(-1)
    side = torch.minimum(height, width)
    scale_x, scale_y = width / side, height / side
    zero = torch.zeros_like(scale_x)
    return torch.stack(
        (
            torch.stack((scale_x, zero, (1 - scale_x) / 2), -1),
            torch.stack((zero, scale_y, (1 - scale_y) / 2), -1),
        ),
        dim=-2,
    )


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies `inner` first and `outer` to its result; both float (batch, 2, 3)."""
    outer = outer.to(torch.promote_types(outer.dtype, inner.dtype))
    inner = inner.to(outer.dtype)
    linear = outer[..., :2] @ inner[..., :2]
    shift = outer[..., :2] @ inner[..., 2:] + outer[..., 2:]
    return torch.cat((linear, shift), dim=-1)


def apply_affine(affine: Tensor, points: Tensor) -> Tensor:
    """Maps points (batch, n, 2), x then y, through affine maps (batch, 2, 3)."""
    return points @ affine[..., :2].transpose(-1, -2) + affine[..., 2].unsqueeze(-2)


def token_centres(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Centres of a view's tokens, float64 (tokens, 2), x then y, row by row."""
    rows, cols = grid
    y = (torch.arange(rows, dtype=torch.float64, device=device) + 0.5) / rows
    x = (torch.arange(cols, dtype=torch.float64, device=device) + 0.5) / cols
    return torch.stack((x.repeat(rows), y.repeat_interleave(cols)), dim=-1)


def tokens_inside(affine: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bool (batch, tokens): whether a token's centre falls on the map, borders included."""
    centres = apply_affine(affine.to(torch.float64), token_centres(grid, affine.device).expand(len(affine), -1, -1))
    slack = 1e-6  # a token centre on the very border must not depend on rounding
    return ((centres >= -slack) & (centres <= 1 + slack)).all(-1)


def sampling_weights(affine: Tensor, grid: tuple[int, int], map_shape: tuple[int, int]) -> Tensor:
    """How much each map cell counts for each token.

    A token is sampled at a regular lattice of points, as many per axis as it spans map cells (rounded up); each point is
    interpolated bilinearly, zero beyond one cell outside the map, and the points are averaged.

    Args:
        affine: float (batch, 2, 3), normalised view -> normalised map.
        grid: rows and columns of the view's tokens.
        map_shape: rows and columns of the map.

    Returns:
        float32 (batch, tokens, map rows * map cols). The row sums are 1 except at the map's border.
    """
    affine = affine.to(torch.float64)
    axis_aligned = (
        bool((affine[:, 0, 1].abs().max() < 1e-12) & (affine[:, 1, 0].abs().max() < 1e-12)) if len(affine) else True
    )
    if axis_aligned:
        return _separable_weights(affine, grid, map_shape)
    return _general_weights(affine, grid, map_shape)


def _points_per_axis(affine: Tensor, grid: tuple[int, int], map_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sample points per token down and across, int64 (batch,) each."""
    cells = torch.tensor([map_shape[1], map_shape[0]], dtype=affine.dtype, device=affine.device)
    across = (affine[:, :, 0] * cells).norm(dim=-1) / grid[1]  # a token's width in map cells
    down = (affine[:, :, 1] * cells).norm(dim=-1) / grid[0]
    # float32 rounding of a caller's box must not add a point: RoIAlign in float32 would not either
    return tuple(torch.ceil(extent - 1e-6).clamp(min=1).long() for extent in (down, across))  # type: ignore[return-value]


def _bilinear(position: Tensor, size: int) -> Tensor:
    """Weights of `size` cells at positions in cell coordinates, RoIAlign's border rule; (..., size)."""
    inside = (position >= -1.0) & (position <= size)
    position = position.clamp(0.0, size - 1.0)
    cell = torch.arange(size, dtype=position.dtype, device=position.device)
    weights = (1.0 - (position.unsqueeze(-1) - cell).abs()).clamp(min=0.0)
    return weights * inside.unsqueeze(-1)


def _axis_weights(scale: Tensor, shift: Tensor, points: Tensor, tokens: int, size: int) -> Tensor:
    """Weights of one axis, float64 (batch, tokens, size)."""
    most = int(points.max()) if len(points) else 1
    step = torch.arange(most, dtype=scale.dtype, device=scale.device)
    offset = (step + 0.5) / points[:, None]  # (batch, most), position inside a token
    counts = (step < points[:, None]).to(scale.dtype) / points[:, None]
    token = torch.arange(tokens, dtype=scale.dtype, device=scale.device)
    view = (token[None, :, None] + offset[:, None, :]) / tokens  # (batch, tokens, most)
    position = (scale[:, None, None] * view + shift[:, None, None]) * size - 0.5
    return (_bilinear(position, size) * counts[:, None, :, None]).sum(2)


def _separable_weights(affine: Tensor, grid: tuple[int, int], map_shape: tuple[int, int]) -> Tensor:
    down, across = _points_per_axis(affine, grid, map_shape)
    vertical = _axis_weights(affine[:, 1, 1], affine[:, 1, 2], down, grid[0], map_shape[0])
    horizontal = _axis_weights(affine[:, 0, 0], affine[:, 0, 2], across, grid[1], map_shape[1])
    joint = vertical[:, :, None, :, None] * horizontal[:, None, :, None, :]
    return joint.reshape(len(affine), grid[0] * grid[1], map_shape[0] * map_shape[1]).to(torch.float32)


def _general_weights(affine: Tensor, grid: tuple[int, int], map_shape: tuple[int, int]) -> Tensor:
    down, across = _points_per_axis(affine, grid, map_shape)
    batch, tokens = len(affine), grid[0] * grid[1]
    weights = affine.new_zeros(batch, tokens, map_shape[0] * map_shape[1])
    corner = token_centres(grid, affine.device) - torch.tensor(
        [0.5 / grid[1], 0.5 / grid[0]], dtype=affine.dtype, device=affine.device
    )
    for row in range(int(down.max())):
        for col in range(int(across.max())):
            used = (row < down) & (col < across)
            inner = torch.stack(((col + 0.5) / across / grid[1], (row + 0.5) / down / grid[0]), -1)  # (batch, 2)
            points = apply_affine(affine, corner[None] + inner[:, None])
            horizontal = _bilinear(points[..., 0] * map_shape[1] - 0.5, map_shape[1])
            vertical = _bilinear(points[..., 1] * map_shape[0] - 0.5, map_shape[0])
            joint = (vertical[..., :, None] * horizontal[..., None, :]).flatten(-2)
            weights += joint * (used / (down * across))[:, None, None]
    return weights.to(torch.float32)
