"""Targets of tokens: stored score maps, aligned with a view and turned into probabilities, never dense.

Only the classes in a photograph's own map differ from one background value, so a target is a small vocabulary, a value
per token and word, and a background. Exact: `dense()` gives the full array, for tests.
Source: section 3.2 and 4.1 of the paper; `tail` (the mass of classes that are not stored) is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..core.errors import LabelError
from .geometry import sampling_weights, tokens_inside, view_affine


@dataclass(frozen=True)
class SparseTargets:
    """Probabilities of all classes for every token, held sparsely.

    The dense target is `background[b, t] + sum over v with vocabulary[b, v] == c of (values[b, t, v] - background[b, t])`.
    A class may stand twice in a vocabulary (after `blend`); its differences add. Padding has values equal to the
    background, so it adds nothing whatever class it names.

    Attributes:
        vocabulary: int64 (batch, words), class indices, padded with 0.
        values: float32 (batch, tokens, words).
        background: float32 (batch, tokens), probability of every class outside the vocabulary.
        inside: bool (batch, tokens), tokens whose centre lies on the map; others take no part in the token loss.
        num_classes: K.
        grid: rows and columns of the tokens.
    """

    vocabulary: Tensor
    values: Tensor
    background: Tensor
    inside: Tensor
    num_classes: int
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def dense(self) -> Tensor:
        """The full target, float32 (batch, tokens, classes)."""
        tokens = self.background.shape[1]
        full = self.background[:, :, None].expand(-1, -1, self.num_classes).clone()
        index = self.vocabulary[:, None, :].expand(-1, tokens, -1)
        return full.scatter_add_(2, index, self.values - self.background[:, :, None])

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same targets on a device."""
        return replace(
            self,
            vocabulary=self.vocabulary.to(device),
            values=self.values.to(device),
            background=self.background.to(device),
            inside=self.inside.to(device),
        )

    def index_select(self, images: Tensor) -> SparseTargets:
        """Targets of some images, int64 (n,), in that order."""
        return replace(
            self,
            vocabulary=self.vocabulary[images],
            values=self.values[images],
            background=self.background[images],
            inside=self.inside[images],
        )

    def without(self, images: Tensor) -> SparseTargets:
        """The same targets with no token of some images (bool (batch,)) taking part."""
        return replace(self, inside=self.inside & ~images[:, None])

    def blend(self, permutation: Tensor, weight: Tensor) -> SparseTargets:
        """Weighted mean with the targets of partner images: MixToken's class target, CutMix, Mixup.

        Args:
            permutation: int64 (batch,), the partner of each image.
            weight: of the own target, in [0, 1]: a scalar, (batch, 1) or (batch, tokens).

        Returns:
            weight * own + (1 - weight) * partner's. A token takes part when every target with a weight above 0 does.
        """
        partner = self.index_select(permutation)
        own_weight = weight.to(self.values.dtype).expand_as(self.background)
        background = own_weight * self.background + (1 - own_weight) * partner.background
        own = own_weight[..., None] * (self.values - self.background[..., None])
        others = (1 - own_weight)[..., None] * (partner.values - partner.background[..., None])
        return replace(
            self,
            vocabulary=torch.cat((self.vocabulary, partner.vocabulary), dim=1),
            values=background[..., None] + torch.cat((own, others), dim=2),
            background=background,
            inside=(self.inside | (own_weight == 0)) & (partner.inside | (own_weight == 1)),
        )


def sparse_targets(
    scores: Tensor | NDArray[np.float16],
    classes: Tensor | NDArray[np.uint16],
    boxes: Tensor | ArrayLike | None,
    grid: tuple[int, int] = (14, 14),
    num_classes: int = 1000,
    flipped: Tensor | ArrayLike | None = None,
    affine: Tensor | ArrayLike | None = None,
    tail: Tensor | NDArray[np.float16] | None = None,
) -> SparseTargets:
    """Targets of a view's tokens.

    The map is aligned as RoIAlign does, classes that a cell does not store having logit 0; softmax over all K classes.
    With `tail` each cell's probabilities are computed first (the tail spread evenly over the classes not stored) and then
    aligned.

    Args:
        scores: float (batch, rows, cols, k), raw logits.
        classes: integer (batch, rows, cols, k), class of each score.
        boxes: float (batch, 4), x0 y0 x1 y1 of the view, normalised to the photograph that the map covers; None with
            `affine`.
        grid: rows and columns of the tokens.
        num_classes: K.
        flipped: bool (batch,), view mirrored left to right; with boxes only.
        affine: float (batch, 2, 3), normalised view -> normalised map; instead of boxes and flipped.
        tail: float (batch, rows, cols), log of the summed exp of all logits that are not stored.

    Raises:
        LabelError: shapes that do not fit, both or neither of boxes and affine, or classes outside K.

    Source: section 4.1 of the paper; differs from the released code, which swaps x and y of the boxes.
    """
    scores, classes = _tensor(scores), _tensor(classes)
    if scores.ndim != 4 or scores.shape != classes.shape:
        raise LabelError(
            f"scores {tuple(scores.shape)} and classes {tuple(classes.shape)}: both must be (batch, rows, cols, k) and equal."
        )
    batch, rows, cols, k = scores.shape
    if k > num_classes:
        raise LabelError(f"{k} classes stored per cell, but num_classes is {num_classes}.")
    classes = classes.to(torch.int64)
    if classes.numel() and not (int(classes.min()) >= 0 and int(classes.max()) < num_classes):
        raise LabelError(
            f"class index {int(classes.max())} (smallest {int(classes.min())}) with num_classes {num_classes}."
        )
    through = _view(boxes, flipped, affine, batch, scores.device)
    weights = sampling_weights(through, grid, (rows, cols))  # (batch, tokens, cells)
    vocabulary, word, valid = _vocabularies(classes.reshape(batch, rows * cols * k), num_classes)
    words = vocabulary.shape[1]
    logits = scores.to(torch.float32).reshape(batch, rows * cols, k)
    if tail is None:
        maps = _scattered(logits, word, words)  # (batch, cells, words), zero where not stored
        aligned = weights @ maps
        values, background = _softmax_with_background(aligned, valid, num_classes)
    else:
        tail = _tensor(tail).to(torch.float32)
        if tail.shape != (batch, rows, cols):
            raise LabelError(f"tail {tuple(tail.shape)}: must be (batch, rows, cols) = {(batch, rows, cols)}.")
        stored, rest = _cell_probabilities(logits, tail.reshape(batch, rows * cols), num_classes - k)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        background = (weights @ rest[..., None]).squeeze(-1)
        difference = weights @ _scattered(stored - rest[..., None], word, words)
        values = background[..., None] + difference
    return SparseTargets(
        vocabulary=vocabulary,
        values=values,
        background=background,
        inside=tokens_inside(through, grid),
        num_classes=num_classes,
        grid=grid,
    )


def pooled_target(
    scores: Tensor | NDArray[np.float16],
    classes: Tensor | NDArray[np.uint16],
    boxes: Tensor | ArrayLike | None,
    num_classes: int = 1000,
    flipped: Tensor | ArrayLike | None = None,
    affine: Tensor | ArrayLike | None = None,
    tail: Tensor | NDArray[np.float16] | None = None,
) -> SparseTargets:
    """The class target: the map pooled over the whole view, (batch, 1 token).

    Arguments and errors as `sparse_targets`. Its one token always takes part.

    Source: ReLabel (Yun et al. 2021), which the released code uses for the class token.
    """
    target = sparse_targets(scores, classes, boxes, (1, 1), num_classes, flipped, affine, tail)
    return replace(target, inside=torch.ones_like(target.inside))


def one_hot_targets(class_index: Tensor, num_classes: int, smoothing: float = 0.0) -> SparseTargets:
    """The photograph's own label as (batch, 1 token), smoothed over all classes.

    Args:
        class_index: int (batch,).
        num_classes: K.
        smoothing: share of the mass that is spread evenly, in [0, 1).
    """
    background = torch.full(
        (len(class_index), 1), smoothing / num_classes, dtype=torch.float32, device=class_index.device
    )
    return SparseTargets(
        vocabulary=class_index.to(torch.int64)[:, None],
        values=(background + (1 - smoothing))[..., None],
        background=background,
        inside=torch.ones_like(background, dtype=torch.bool),
        num_classes=num_classes,
        grid=(1, 1),
    )


def _tensor(array: Tensor | ArrayLike) -> Tensor:
    if isinstance(array, Tensor):
        return array
    numbers = np.asarray(array)
    if numbers.dtype.kind == "u":  # torch has few operations on unsigned types
        numbers = numbers.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(numbers))


def _view(
    boxes: Tensor | ArrayLike | None,
    flipped: Tensor | ArrayLike | None,
    affine: Tensor | ArrayLike | None,
    batch: int,
    device: torch.device,
) -> Tensor:
    if (boxes is None) == (affine is None):
        raise LabelError("give either boxes (with flipped) or affine, not both or neither.")
    if affine is not None:
        if flipped is not None:
            raise LabelError("flipped goes with boxes; an affine map contains its flip.")
        through = _tensor(affine).to(device=device, dtype=torch.float64)
        if through.shape != (batch, 2, 3):
            raise LabelError(f"affine {tuple(through.shape)}: must be (batch, 2, 3) with batch {batch}.")
        return through
    assert boxes is not None
    corners = _tensor(boxes).to(device=device, dtype=torch.float64)
    if corners.shape != (batch, 4):
        raise LabelError(f"boxes {tuple(corners.shape)}: must be (batch, 4) with batch {batch}, as x0 y0 x1 y1.")
    if (corners[:, 2:] <= corners[:, :2]).any():
        raise LabelError("boxes: x1 must be above x0 and y1 above y0 (x0 y0 x1 y1, normalised).")
    mirrored = None
    if flipped is not None:
        mirrored = _tensor(flipped).to(device=device, dtype=torch.bool)
        if mirrored.shape != (batch,):
            raise LabelError(f"flipped {tuple(mirrored.shape)}: must be (batch,) with batch {batch}.")
    return view_affine(corners, mirrored)


def _vocabularies(flat: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct classes of each image.

    Args:
        flat: int64 (batch, entries).

    Returns:
        vocabulary int64 (batch, words) padded with 0, the word of each entry int64 (batch, entries), and which words are
        real, bool (batch, words).
    """
    ordered, order = flat.sort(dim=1)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = fresh.cumsum(1) - 1  # word of each sorted entry
    word = torch.empty_like(number).scatter_(1, order, number)
    words = int(number[:, -1].max()) + 1 if flat.numel() else 0
    vocabulary = torch.zeros(len(flat), words, dtype=torch.int64, device=flat.device).scatter_(1, number, ordered)
    valid = torch.arange(words, device=flat.device) <= number[:, -1:]
    return vocabulary, word, valid


def _scattered(per_entry: Tensor, word: Tensor, words: int) -> Tensor:
    """Spreads (batch, cells, k) over the vocabulary: (batch, cells, words), zero elsewhere."""
    batch, cells, k = per_entry.shape
    spread = per_entry.new_zeros(batch, cells, words)
    return spread.scatter_add_(2, word.reshape(batch, cells, k), per_entry)


def _softmax_with_background(aligned: Tensor, valid: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Softmax over K classes of which all but the vocabulary have logit 0."""
    shown = aligned.masked_fill(~valid[:, None, :], float("-inf"))
    highest = shown.amax(-1, keepdim=True).clamp_min(0.0)
    exponentials = (shown - highest).exp()
    silent = (num_classes - valid.sum(-1)).to(aligned.dtype)[:, None, None] * (-highest).exp()
    total = exponentials.sum(-1, keepdim=True) + silent
    background = (-highest).exp() / total
    values = torch.where(valid[:, None, :], exponentials / total, background)
    return values, background.squeeze(-1)


def _cell_probabilities(logits: Tensor, tail: Tensor, unstored: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the stored classes (batch, cells, k) and of each class that is not stored (batch, cells)."""
    total = torch.logaddexp(logits.logsumexp(-1), tail)
    rest = (tail - total).exp() / max(unstored, 1)
    if unstored == 0:
        rest = torch.zeros_like(rest)
    return (logits - total[..., None]).exp(), rest
