"""T2T-ViT: tokens made by two soft splits with attention between them, then a plain transformer, with a token head.

Guarantees the names and shapes of the T2T paper's checkpoints (which lack `aux_head`). Made by `registry`.
Source: Yuan et al. 2021, "Tokens-to-Token ViT", arXiv 2101.11986; Choromanski et al. 2020 for the Performer's kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core.errors import unknown_name
from .blocks import FeedForward
from .transformer import TokenTransformer

_COMMON: dict[str, Any] = {
    "mlp_ratio": 3.0,
    "token_module": "performer",
    "token_dropout": 0.1,  # the T2T code's, inside the Performer layers only
    "attention_scale": None,
    "stochastic_depth": 0.0,
    "stochastic_depth_rule": "linear",
    "token_score_weight": 0.5,
}
_TRANSFORMER = _COMMON | {"token_module": "transformer"}
T2T_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "t2t_vit_14": _COMMON | {"depth": 14, "width": 384, "heads": 6},
        "t2t_vit_19": _COMMON | {"depth": 19, "width": 448, "heads": 7},
        "t2t_vit_24": _COMMON | {"depth": 24, "width": 512, "heads": 8},
        "t2t_vit_t_14": _TRANSFORMER | {"depth": 14, "width": 384, "heads": 6},
        "t2t_vit_t_19": _TRANSFORMER | {"depth": 19, "width": 448, "heads": 7},
        "t2t_vit_t_24": _TRANSFORMER | {"depth": 24, "width": 512, "heads": 8},
    }
)
TOKEN_MODULES = ("performer", "transformer")
TOKEN_CHANNELS = 64  # inside the tokens-to-token module, for every size
TOTAL_STRIDE = 16


class PerformerLayer(nn.Module):
    """One single-head layer whose attention costs linearly many multiply-adds: softmax kernel by random features.

    The skip connection starts at the values, because input and output have different widths.

    Args:
        source: channels in.
        width: channels out.
        dropout: of the attention's and the feed-forward's output.
    """

    w: Tensor

    def __init__(self, source: int, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        features = width // 2
        self.kqv = nn.Linear(source, 3 * width)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(source)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))
        # Orthogonal rows of length sqrt(features): drawn once, saved, never trained.
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(features, width)) * math.sqrt(features))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, source) -> (batch, tokens, width)."""
        key, query, value = self.kqv(self.norm1(tokens)).split(self.width, dim=-1)
        # Exponentials and sums over thousands of tokens leave the range of half precision.
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            mixed = self._attend(query.float(), key.float(), value.float())
        tokens = value + self.dropout(self.proj(mixed.to(value.dtype)))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = self._features(query), self._features(key)  # (batch, tokens, features)
        summary = key.transpose(1, 2) @ value  # (batch, features, width)
        weight = query @ key.sum(dim=1).unsqueeze(-1)  # (batch, tokens, 1), softmax's denominator
        return (query @ summary) / (weight + 1e-8)

    def _features(self, vectors: Tensor) -> Tensor:
        """Positive random features: E[f(x) f(y)] is exp(x y) (Performer, lemma 1)."""
        half_norm = vectors.square().sum(dim=-1, keepdim=True) / 2
        w = self.w.float()
        return torch.exp(vectors @ w.t() - half_norm) / math.sqrt(w.shape[0])


class _ValueSkipAttention(nn.Module):
    """Single-head softmax attention from `source` to `width` channels with a skip connection from the values."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.scale = source**-0.5  # of the input's width, as in the T2T code
        self.qkv = nn.Linear(source, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, source) -> (batch, tokens, width)."""
        query, key, value = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)  # each (batch, 1, tokens, width)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        out: Tensor = (value + self.proj(mixed)).squeeze(1)
        return out


class TransformerLayer(nn.Module):
    """The same with softmax attention (T2T-ViT_t): quadratic in the 56 x 56 tokens."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(source)
        self.attn = _ValueSkipAttention(source, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, source) -> (batch, tokens, width)."""
        tokens = self.attn(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class TokensToToken(nn.Module):
    """Soft splits (overlapping patches: 7x7 stride 4, 3x3 stride 2, 3x3 stride 2) with a layer between each two."""

    def __init__(self, width: int, token_module: str, dropout: float) -> None:
        super().__init__()

        def layer(source: int) -> nn.Module:
            if token_module == "performer":
                return PerformerLayer(source, TOKEN_CHANNELS, dropout)
            return TransformerLayer(source, TOKEN_CHANNELS)

        self.attention1 = layer(3 * 7 * 7)
        self.attention2 = layer(TOKEN_CHANNELS * 3 * 3)
        self.project = nn.Linear(TOKEN_CHANNELS * 3 * 3, width)

    def forward(self, images: Tensor, recompute: bool = False) -> Tensor:
        """(batch, 3, height, width) -> (batch, height * width / 16^2, width), row by row; see `set_grad_checkpointing`."""
        rows, cols = images.shape[-2] // TOTAL_STRIDE, images.shape[-1] // TOTAL_STRIDE
        tokens = F.unfold(images, kernel_size=7, stride=4, padding=2).transpose(1, 2)
        for finer, layer in ((4, self.attention1), (2, self.attention2)):
            tokens = checkpoint(layer, tokens, use_reentrant=False) if recompute else layer(tokens)
            tokens = _split(tokens, finer * rows, finer * cols)
        out: Tensor = self.project(tokens)
        return out


class T2TViT(TokenTransformer):
    """T2T-ViT with a token head; `T2T_PRESETS` holds the T2T paper's sizes.

    Args:
        num_classes: classes of both heads.
        image_px: side of the images, a multiple of 16.
        depth, width, heads, mlp_ratio: of the transformer.
        token_module: `performer` (Table 4's model) or `transformer` (T2T-ViT_t).
        token_dropout: dropout inside the Performer layers.
        attention_scale: None for 1 / sqrt(width / heads). The T2T authors' own weights were trained with
            1 / sqrt(width) and need that value here.
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
        token_module: str,
        token_dropout: float,
        attention_scale: float | None,
        stochastic_depth: float,
        stochastic_depth_rule: str,
        token_score_weight: float,
    ) -> None:
        if token_module not in TOKEN_MODULES:
            raise unknown_name("token_module", token_module, TOKEN_MODULES)
        super().__init__(num_classes, image_px, TOTAL_STRIDE, width, token_score_weight=token_score_weight)
        self.register_buffer("pos_embed", sinusoid_positions(1 + self.grid[0] * self.grid[1], width))
        self.tokens_to_token = TokensToToken(width, token_module, token_dropout)
        self.add_encoder(
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            stochastic_depth=stochastic_depth,
            stochastic_depth_rule=stochastic_depth_rule,
            attention_scale=attention_scale,
        )

    def embed_patches(self, images: Tensor) -> Tensor:
        """(batch, 3, image_px, image_px) -> (batch, tokens, width), row by row."""
        tokens: Tensor = self.tokens_to_token(images, self.recomputes)
        return tokens


def sinusoid_positions(count: int, width: int) -> Tensor:
    """Float (1, count, width): sines in even and cosines in odd channels, wavelengths 2 pi to 10,000 * 2 pi."""
    pair = torch.arange(width) // 2 * 2
    angles = torch.arange(count)[:, None] / 10_000 ** (pair / width)  # (count, width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())[None]


def _split(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Lays tokens out as a rows x cols map and cuts overlapping 3x3 patches with stride 2 from it."""
    grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, rows, cols)
    return F.unfold(grid, kernel_size=3, stride=2, padding=1).transpose(1, 2)
