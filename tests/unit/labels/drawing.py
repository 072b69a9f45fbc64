"""Photographs whose pixels say where they come from, so that geometry can be read off a changed picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

INSIDE = 255  # blue of the photograph; every fill colour used is darker


def ramp(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Red grows with x, green with y: a pixel's colour is its place, and survives any interpolation.

    The second picture has the same colours the other way round: Pillow rounds down after each bilinear operation, which
    would look like a shift, and the difference of both is free of it.
    """
    pixels = np.full((height, width, 3), INSIDE, np.uint8)
    pixels[..., 0] = np.round(255 * (np.arange(width) + 0.5) / width)
    pixels[..., 1] = np.round(255 * (np.arange(height)[:, None] + 0.5) / height)
    opposite = pixels.copy()
    opposite[..., :2] = 255 - pixels[..., :2]
    return Image.fromarray(pixels), Image.fromarray(opposite)


def regions(width: int, height: int, grid: tuple[int, int]) -> Image.Image:
    """Each cell of a grid (rows, cols) has a colour of its own, 20 x (col + 1) and 20 x (row + 1); to be moved by nearest."""
    rows, cols = grid
    pixels = np.full((height, width, 3), INSIDE, np.uint8)
    pixels[..., 0] = 20 * (1 + np.arange(width) * cols // width)
    pixels[..., 1] = 20 * (1 + np.arange(height)[:, None] * rows // height)
    return Image.fromarray(pixels)


def region_of(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Index of the region that each pixel (height, width, 3) shows, row by row; -1 outside the photograph."""
    index = (pixels[..., 1] // 20 - 1).astype(int) * grid[1] + (pixels[..., 0] // 20 - 1)
    return np.where(pixels[..., 2] == INSIDE, index, -1)


def where_from(pixels: np.ndarray, opposite: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares map of the moved pictures of a `ramp` of `size` (width, height).

    Returns:
        (2, 3), px of the picture -> px of the photograph; and the points (n, 2) in px of the picture that it rests on.
    """
    colour = (pixels[..., :2].astype(float) + 255 - opposite[..., :2]) / 2
    shown = pixels[..., 2] == INSIDE
    for _ in range(3):  # away from fills, whose colour bleeds into the neighbours
        for axis in (0, 1):
            shown &= np.roll(shown, 1, axis) & np.roll(shown, -1, axis)
    shown[:4], shown[-4:], shown[:, :4], shown[:, -4:] = False, False, False, False
    shown &= ((colour > 8) & (colour < 247)).all(-1)
    rows, cols = np.nonzero(shown)
    points = np.stack([cols + 0.5, rows + 0.5, np.ones(len(rows))], 1)
    return np.linalg.lstsq(points, colour[shown] / 255 * np.array(size), rcond=None)[0].T, points[:, :2]


def shown_by_tokens(
    pixels: np.ndarray, grid: tuple[int, int], tokens: tuple[int, int], doubt_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per token the region that all its pixels show, -1 outside the photograph; and whether they agree, neighbours included."""
    rows, cols = pixels.shape[0] // tokens[0], pixels.shape[1] // tokens[1]
    shown = np.pad(region_of(pixels, grid), doubt_px, mode="edge")
    patches = [
        shown[row * rows : (row + 1) * rows + 2 * doubt_px, col * cols : (col + 1) * cols + 2 * doubt_px]
        for row in range(tokens[0])
        for col in range(tokens[1])
    ]
    return np.array([patch.flat[0] for patch in patches]), np.array(
        [(patch == patch.flat[0]).all() for patch in patches]
    )


def region_maps(grid: tuple[int, int], cells_per_region: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Score maps (1, rows, cols, 1) that are sure of each cell's region: scores and classes."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    numbers = numbers.repeat(cells_per_region[0], 0).repeat(cells_per_region[1], 1)
    return np.full((1, *numbers.shape, 1), 8.0, np.float32), numbers[None, ..., None]
