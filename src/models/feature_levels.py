"""Which feature maps of a backbone a segmentation head reads, and what they are: channels and pixels of a cell, measured.

A plain transformer has one grid of tokens, so its levels are outputs of several blocks, rescaled by the head. Called by
`segmentation`. Reads the backbone through `TokenModel.forward_levels` only. Source: paper section 4.4; blocks of the
released configurations for mmsegmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .timm_backbones import TIMM_PREFIX, TimmTokenModel
from .timm_layouts import timm_says
from .tokens import TokenModel, eval_mode

SPACINGS = ("late", "even")
LATE_STEP = 3  # blocks between two levels in the released configurations of LV-ViT-S, -M and -L
PROBE = (2, 3)  # tokens of the blank image that shows the maps; not square, as photographs are


@dataclass(frozen=True)
class FeatureLevels:
    """The maps that a head reads.

    Attributes:
        blocks: whose outputs they are, from 1, ascending; a block twice where the backbone has fewer than levels.
        widths: channels of each.
        strides: pixels along a cell's side, of each.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_pyramid(self) -> bool:
        """Whether the maps differ in resolution by themselves, as the stages of a CNN do."""
        return len(set(self.strides)) > 1

    def read(self, backbone: TokenModel, images: Tensor) -> list[Tensor]:
        """The maps of images, each (batch, width, rows, cols).

        Args:
            backbone: the one that was measured.
            images: (batch, 3, height, width), normalised; sides are multiples of the strides.
        """
        return _read(backbone, images, self.blocks)


def choose_blocks(blocks: str | Sequence[int], depth: int, count: int) -> tuple[int, ...]:
    """Numbers of the blocks, from 1, whose outputs are the levels.

    Args:
        blocks: `late`: every third block up to the last, in a network of fewer blocks as `even`; `even`: at equal distances up
            to the last; or the numbers themselves.
        depth: blocks of the backbone.
        count: levels wanted.

    Raises:
        ConfigError: an unknown word, or numbers that are too many, out of order or beyond the last block.
    """
    if isinstance(blocks, str):
        if blocks not in SPACINGS:
            raise ConfigError(f"levels.blocks is {blocks!r}; legal are {', '.join(SPACINGS)}, or numbers of blocks")
        if blocks == "late" and LATE_STEP * (count - 1) < depth:
            return tuple(depth - LATE_STEP * later for later in reversed(range(count)))
        return tuple(math.ceil(depth * (level + 1) / count) for level in range(count))
    found = tuple(blocks)
    if len(found) != count or list(found) != sorted(set(found)) or not 1 <= min(found) <= max(found) <= depth:
        raise ConfigError(
            f"levels.blocks is {list(found)}; expected {count} numbers (one for each of levels.scales) that grow, from 1 to the "
            f"backbone's last block {depth}"
        )
    return found


def measure_levels(backbone: TokenModel, blocks: Sequence[int]) -> FeatureLevels:
    """Runs a small blank image that is not square; one of timm's networks also one that is larger than its own.

    Args:
        backbone: after `keep_levels`; left as it was.
        blocks: as `choose_blocks` gives them.

    Raises:
        ConfigError: it takes images of one size only, or its cells divide no image evenly.
    """
    name = f"{TIMM_PREFIX}{backbone.architecture}" if isinstance(backbone, TimmTokenModel) else type(backbone).__name__
    token_px = backbone.image_px // backbone.grid[0]
    size = PROBE[0] * token_px, PROBE[1] * token_px
    sizes = [size]
    if isinstance(backbone, TimmTokenModel):
        # some take smaller images than their own, and end in an index beyond their positions
        sizes.append(((backbone.grid[0] + 1) * token_px, (backbone.grid[1] + 2) * token_px))
    anchor = next(backbone.parameters())
    refusal = (
        f"{name} takes images of {backbone.image_px} px only, a segmenter needs any height and width; LV-ViT, T2T-ViT, ViT, "
        "DeiT, Swin and CNNs give them"
    )
    with eval_mode(backbone), torch.no_grad(), timm_says(refusal):
        blank = [torch.zeros(1, 3, *sides, device=anchor.device, dtype=anchor.dtype) for sides in sizes]
        maps, *_ = [_read(backbone, image, blocks) for image in blank]
    strides = tuple(size[0] // found.shape[-2] for found in maps)
    if any(
        (found.shape[-2] * stride, found.shape[-1] * stride) != size
        for found, stride in zip(maps, strides, strict=True)
    ):
        shapes = ", ".join(f"{found.shape[-2]} x {found.shape[-1]}" for found in maps)
        raise ConfigError(
            f"{name}: an image of {size[0]} x {size[1]} px gives maps of {shapes} cells, which do not divide it evenly; a "
            "segmenter needs that. Take another backbone."
        )
    return FeatureLevels(tuple(blocks), tuple(found.shape[1] for found in maps), strides)


def _read(backbone: TokenModel, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    once = sorted(set(blocks))
    maps = dict(zip(once, backbone.forward_levels(images, once), strict=True))
    return [maps[block] for block in blocks]
