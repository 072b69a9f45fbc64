"""The token loss: soft cross-entropy with sparse targets, exact in value and gradient, without the dense target.

    loss[b, t] = mass * logsumexp(logits) - background * sum(logits) - sum over vocabulary of (value - background) * logit

Called by the stages' supervision and by other training code, for token targets and for class targets (one token).
Source: paper section 3.2, equations 3 and 4. Differs from the released code in that images without labels count as zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .geometry import ShapeError
from .targets import SparseTargets


def token_cross_entropy(logits: Tensor, targets: SparseTargets, participation: Tensor | None = None) -> Tensor:
    """Cross-entropy: mean over an image's participating tokens, then over all images of the batch.

    An image without participating tokens adds 0 to the sum and counts in the denominator.

    Args:
        logits: (batch, tokens, classes), any floating-point type; computed in float32 (float64 where they are).
        targets: of the same batch, tokens and classes, on the same device.
        participation: bool (batch, tokens), which tokens take part besides having a target; None for all.

    Returns:
        float32 (float64) scalar; 0 for an empty batch.

    Raises:
        ShapeError: axes that do not fit.
    """
    batch, tokens = targets.background.shape
    if logits.shape != (batch, tokens, targets.num_classes):
        raise ShapeError(
            f"logits (batch, tokens, classes) are {tuple(logits.shape)}, "
            f"the targets are of {(batch, tokens, targets.num_classes)}."
        )
    counted = targets.inside
    if participation is not None:
        if participation.shape != counted.shape:
            raise ShapeError(
                f"participation (batch, tokens) is {tuple(participation.shape)}, expected {(batch, tokens)}."
            )
        counted = counted & participation.to(device=counted.device, dtype=torch.bool)
    losses: Tensor = _SparseCrossEntropy.apply(logits, targets.vocabulary, targets.values, targets.background)
    share = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return (losses * share.to(losses.dtype)).sum() / max(batch, 1)


class _SparseCrossEntropy(torch.autograd.Function):
    """Loss of every token, (batch, tokens). By hand because autograd would keep three arrays of the logits' size, not one."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, vocabulary: Tensor, values: Tensor, background: Tensor) -> Tensor:
        exact = logits if logits.dtype == torch.float64 else logits.to(torch.float32)
        background = background.to(exact.dtype)
        above = values.to(exact.dtype) - background[..., None]  # (batch, tokens, V)
        index = vocabulary[:, None].expand_as(above)
        log_total = exact.logsumexp(-1)
        mass = exact.shape[-1] * background + above.sum(-1)  # 1 but for rounding
        ctx.save_for_backward(logits, index, above, background, log_total, mass)
        return mass * log_total - background * exact.sum(-1) - (above * exact.gather(2, index)).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, index, above, background, log_total, mass = ctx.saved_tensors
        exact = logits if logits.dtype == torch.float64 else logits.to(torch.float32)
        slope = (exact - log_total[..., None]).exp_().mul_(mass[..., None]).sub_(background[..., None])
        slope.scatter_add_(2, index, -above).mul_(gradient[..., None])
        return slope.to(logits.dtype), None, None, None
