"""The token loss: soft cross entropy against sparse targets, exact and without the dense target.

Source: equation 2 of the paper. With one background value per token the sum over all classes is
logsumexp - background * sum of logits - sum over the vocabulary of (value - background) * logit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import LabelError
from .targets import SparseTargets


def token_cross_entropy(logits: Tensor, targets: SparseTargets, participation: Tensor | None = None) -> Tensor:
    """Mean over an image's participating tokens, then over all images of the batch.

    Args:
        logits: float (batch, tokens, classes); computed in float32 whatever their type.
        targets: of the same batch, tokens and classes.
        participation: bool (batch, tokens), tokens that take part; None: all. Tokens outside the map never do.

    Returns:
        float32 scalar. An image without a participating token adds 0 and counts in the denominator.

    Raises:
        LabelError: shapes that do not fit.
    """
    batch, tokens, num_classes = logits.shape
    if targets.background.shape != (batch, tokens) or targets.num_classes != num_classes:
        raise LabelError(
            f"logits (batch, tokens, classes) = {tuple(logits.shape)}, targets are for {tuple(targets.background.shape)} "
            f"and {targets.num_classes} classes."
        )
    taking_part = targets.inside
    if participation is not None:
        if participation.shape != (batch, tokens):
            raise LabelError(
                f"participation {tuple(participation.shape)}: must be (batch, tokens) = {(batch, tokens)}."
            )
        taking_part = taking_part & participation
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        index = targets.vocabulary[:, None, :].expand(-1, tokens, -1)
        difference = targets.values - targets.background[..., None]
        # all probabilities sum to one, so logsumexp enters once
        per_token = (
            logits.logsumexp(-1) - targets.background * logits.sum(-1) - (difference * logits.gather(2, index)).sum(-1)
        )
        counted = taking_part.sum(1).clamp_min(1)
        per_image = torch.where(taking_part, per_token, 0.0).sum(1) / counted
        return per_image.mean()
