"""The token loss: soft cross-entropy with sparse targets, exact in value and gradient, without the dense target.

    loss[b, t] = mass * logsumexp(logits) - background * sum(logits) - sum over vocabulary of (value - background) * logit

Called by the stages' supervision and by other training code, for token targets and for class targets (one token). Never
waits for the device: no value is read back.
Source: paper section 3.2, equations 3 and 4. Differs from the released code in that images without labels count as zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .geometry import ShapeError
from .targets import SparseTargets

# logits that are worked on at once: on a CPU few enough for its cache and enough to pay for the calls (measured); on a GPU
# so few that temporaries stay small
BLOCK_CPU_CORE, BLOCK_GPU = 1 << 19, 1 << 25
Part = tuple[slice, slice]  # of batch and tokens


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
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = counted.to(exact) / (counted.sum(1, keepdim=True).clamp(min=1) * max(batch, 1))
    background = targets.background.to(exact)
    above = targets.values.to(exact) - background[..., None]  # (batch, tokens, V)
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula, and differentiates it
        with torch.autocast(logits.device.type, enabled=False):
            # a token that does not take part must not matter, whatever its logits are
            logp = torch.where(weight[..., None] > 0, logits, 0.0).log_softmax(-1, dtype=exact)
            at_vocabulary = logp.gather(2, targets.vocabulary[:, None].expand_as(above))
            losses = background * logp.sum(-1) + (above * at_vocabulary).sum(-1)
            return -(losses * weight).sum()
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _SparseCrossEntropy.apply(logits, targets.vocabulary, above, background, weight, differentiate)
    return loss


class _SparseCrossEntropy(torch.autograd.Function):
    """The weighted sum of the tokens' losses, block by block.

    By hand because autograd would keep three arrays of the logits' size. Here it is one: the softmax, which the forward pass
    has at hand and the backward pass turns into the gradient where it lies. A second backward pass over the same graph makes
    it anew, and so does every backward pass for half-precision logits, for which it would be rounded too early.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, vocabulary: Tensor, above: Tensor, background: Tensor, weight: Tensor, differentiate: bool
    ) -> Tensor:  # fmt: skip
        mass = background * logits.shape[-1] + above.sum(-1)  # 1 but for rounding and smoothing
        ctx.save_for_backward(logits, vocabulary, above, background, mass, weight)
        keep = differentiate and logits.dtype == weight.dtype
        ctx.softmax = torch.empty_like(logits, memory_format=torch.contiguous_format) if keep else None
        highest, total, at_vocabulary = background.new_empty(3, *background.shape)
        for part in _blocks(logits):
            centred = logits[part].to(weight.dtype)
            # relative to the highest logit, so that a common offset of all logits costs no digits
            centred = centred - centred.amax(-1, keepdim=True)
            softmax = torch.softmax(centred, -1, out=ctx.softmax[part] if keep else None)
            torch.amax(softmax, -1, out=highest[part])
            torch.sum(centred, -1, out=total[part])
            excess = above[part]
            named = centred.gather(2, vocabulary[part[0], None].expand_as(excess))
            torch.sum(named.mul_(excess), -1, out=at_vocabulary[part])
        # the highest probability is exp(0) / sum of all exp
        losses = -mass * highest.log_() - _product(background, total) - at_vocabulary
        return torch.sum(_product(weight, losses))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        logits, vocabulary, above, background, mass, weight = ctx.saved_tensors
        kept, ctx.softmax = ctx.softmax, None
        slope = torch.empty_like(logits) if kept is None else kept
        # weight * (mass * softmax - target)
        absent = (weight == 0)[..., None]
        weight = (weight * gradient)[..., None]
        factor, base, excess = mass[..., None] * weight, background[..., None] * weight, above * -weight
        for part in _blocks(logits):
            softmax = logits[part].softmax(-1, dtype=weight.dtype) if kept is None else kept[part]
            if logits.device.type != "cpu" or absent[part].any():
                softmax.masked_fill_(absent[part], 0.0)  # they may be infinite or not a number
            added = excess[part]
            softmax.mul_(factor[part]).sub_(base[part])
            softmax.scatter_add_(2, vocabulary[part[0], None].expand_as(added), added)
            if kept is None:
                slope[part] = softmax
        return slope, None, None, None, None, None


def _product(weight: Tensor, values: Tensor) -> Tensor:
    """weight * values, where a weight of 0 leaves out also what is not finite."""
    return torch.where(weight == 0, 0.0, weight * values)


def _blocks(logits: Tensor) -> Iterator[Part]:
    """Slices of batch and tokens: several images, or some tokens of one."""
    batch, tokens, classes = logits.shape
    size = BLOCK_CPU_CORE * torch.get_num_threads() if logits.device.type == "cpu" else BLOCK_GPU
    rows = max(1, size // max(classes, 1))
    images = max(1, rows // max(tokens, 1))
    for image in range(0, batch, images):
        for token in range(0, tokens, rows):
            yield slice(image, image + images), slice(token, token + rows)
