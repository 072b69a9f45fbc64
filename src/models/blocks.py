"""The layers of a transformer's encoder: attention, feed-forward, stochastic depth and the pre-norm block of the three.

Guarantees the parameter names of the published checkpoints. Called by `transformer`, and `t2t` for its feed-forward.
Source: Dosovitskiy et al. 2020; paper appendix B.1 (residual scale); Huang et al. 2016 (stochastic depth).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention; the keys have no bias because softmax would cancel it, and published ones have none.

    Args:
        width: channels in and out.
        heads: a divisor of width.
        scale: factor of the dot products; None means 1 / sqrt(width / heads).
    """

    def __init__(self, width: int, heads: int, scale: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        batch, length, width = tokens.shape
        parts = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)  # each (batch, heads, tokens, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole images in training and scales the survivors, so the mean is unchanged."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape; some images zeroed."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        survivors = branch.new_empty((branch.shape[0], 1, 1)).bernoulli_(keep)
        return branch * (survivors / keep)

    def extra_repr(self) -> str:
        """Shows the rate when the model is printed."""
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)) / residual_scale, then the same with the feed-forward (Table 10)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        drop_rate: float,
        residual_scale: float = 1.0,
        attention_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, attention_scale)
        self.drop_path = StochasticDepth(drop_rate)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens))) / self.residual_scale
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens))) / self.residual_scale
        return out
