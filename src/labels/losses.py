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

# logits that are worked on at once: a block and its softmax stay in a core's cache, temporaries stay small on a GPU
BLOCK_CPU_CORE, BLOCK_GPU = 1 << 18, 1 << 25


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
    arrays = (targets.vocabulary, targets.values.to(exact), targets.background.to(exact), weight)
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula, and differentiates it
        with torch.autocast(logits.device.type, enabled=False):
            return _plain_loss(logits.to(exact), *arrays)
    loss: Tensor = _SparseCrossEntropy.apply(logits, *arrays, torch.is_grad_enabled() and logits.requires_grad)
    return loss


def _plain_loss(logits: Tensor, vocabulary: Tensor, values: Tensor, background: Tensor, weight: Tensor) -> Tensor:
    above = values - background[..., None]  # (batch, tokens, V)
    logp = logits.log_softmax(-1)
    at_vocabulary = logp.gather(2, vocabulary[:, None].expand_as(above))
    losses = background * logp.sum(-1) + (above * at_vocabulary).sum(-1)
    return -(losses * weight).sum()


class _SparseCrossEntropy(torch.autograd.Function):
    """The weighted sum of the tokens' losses, block by block.

    By hand because autograd would keep three arrays of the logits' size. Here it is one, the gradient, which the forward
    pass makes on the way, as it has the softmax at hand; the backward pass scales it in place. A second backward pass
    over the same graph makes it anew, and so does every backward pass for half-precision logits, whose gradient must
    not be rounded before a loss scale has reached it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, vocabulary: Tensor, values: Tensor, background: Tensor, weight: Tensor, differentiate: bool
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(logits, vocabulary, values, background, weight)
        ctx.slope = torch.empty_like(logits) if differentiate and logits.dtype == weight.dtype else None
        losses = torch.empty_like(background)
        for part in _blocks(logits):
            centred = logits[part].to(weight.dtype)
            # relative to the highest logit, so that a common offset of all logits costs no digits
            centred = centred - centred.amax(-1, keepdim=True)
            base = background[part]
            above = values[part] - base[..., None]
            index = vocabulary[part[0], None].expand_as(above)
            at_vocabulary = (centred.gather(2, index) * above).sum(-1)
            mass = base * logits.shape[-1] + above.sum(-1)  # 1 but for rounding and smoothing
            rest = base * centred.sum(-1) + at_vocabulary
            softmax = torch.softmax(centred, -1, out=None if ctx.slope is None else ctx.slope[part])
            # the highest probability is exp(0) / total
            losses[part] = -(mass * softmax.amax(-1).log_()).add_(rest)
            if ctx.slope is not None:
                _slope_of(softmax, index, above, base, mass, weight[part])
        return (losses * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        slope, ctx.slope = ctx.slope, None
        if slope is not None:
            return slope.mul_(gradient), None, None, None, None, None
        logits, vocabulary, values, background, weight = ctx.saved_tensors
        weight = weight * gradient
        slope = torch.empty_like(logits)
        for part in _blocks(logits):
            base = background[part]
            above = values[part] - base[..., None]
            index = vocabulary[part[0], None].expand_as(above)
            mass = base * logits.shape[-1] + above.sum(-1)
            softmax = logits[part].softmax(-1, dtype=weight.dtype)
            slope[part] = _slope_of(softmax, index, above, base, mass, weight[part])
        return slope, None, None, None, None, None


def _slope_of(
    softmax: Tensor, index: Tensor, above: Tensor, background: Tensor, mass: Tensor, weight: Tensor
) -> Tensor:
    """The loss's gradient, weight * (mass * softmax - target), in the softmax's place."""
    softmax.mul_((mass * weight)[..., None]).sub_((background * weight)[..., None])
    return softmax.scatter_add_(2, index, above * -weight[..., None])


def _blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and tokens: several images, or some tokens of one."""
    batch, tokens, classes = logits.shape
    size = BLOCK_CPU_CORE * torch.get_num_threads() if logits.device.type == "cpu" else BLOCK_GPU
    rows = max(1, size // max(classes, 1))
    images = max(1, rows // max(tokens, 1))
    for image in range(0, batch, images):
        for token in range(0, tokens, rows):
            yield slice(image, image + images), slice(token, token + rows)
