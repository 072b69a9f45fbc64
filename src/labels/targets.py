"""Targets of tokens and images, made from stored score maps without ever building all classes.

Only the classes in an image's own map differ from one background value per token: `SparseTargets` keeps these. It is exact,
not an approximation. Called by the stages' supervision and by other training code; never reads files, needs no gradient.

Source: paper section 3.2 and the released code (softmax after RoIAlign of a map that is zero where nothing is stored).
Differs: x and y in the right order, the stored view is used; with a tail, mass that was not stored is kept (our extension).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .geometry import (
    ArrayLike,
    ShapeError,
    as_float,
    checked_affine,
    checked_boxes,
    sampling_weights,
    token_centres,
    view_affine,
)


@dataclass(frozen=True)
class SparseTargets:
    """Distributions over all classes, most of which share one value.

    dense[b, t, c] = background[b, t] + sum over v with vocabulary[b, v] == c of (values[b, t, v] - background[b, t]).

    Attributes:
        vocabulary: int64 (batch, V), padded with class 0; a class may occur more than once after a blend.
        values: float32 (batch, tokens, V); equal to the background where padded.
        background: float32 (batch, tokens), probability of each class outside the vocabulary.
        inside: bool (batch, tokens), whether the token has a target at all.
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
        return len(self.background)

    def dense(self) -> Tensor:
        """All classes: float32 (batch, tokens, classes). For tests and small numbers of classes."""
        batch, tokens, entries = self.values.shape
        target = self.background[..., None].expand(batch, tokens, self.num_classes).clone()
        index = self.vocabulary[:, None].expand(batch, tokens, entries)
        return target.scatter_add_(2, index, self.values - self.background[..., None])

    def blend(self, permutation: Tensor, weight: Tensor | float) -> SparseTargets:
        """weight * self + (1 - weight) * self[permutation], exactly.

        Args:
            permutation: int64 (batch,), each image's partner.
            weight: in [0, 1]; a number, (batch, 1) or (batch, tokens).

        Returns:
            targets with both vocabularies. A token is inside where each side that counts is.

        Raises:
            ShapeError: other axes.
        """
        batch, tokens = self.background.shape
        if permutation.shape != (batch,):
            raise ShapeError(f"permutation (batch,) is {tuple(permutation.shape)}, expected ({batch},).")
        share = torch.as_tensor(weight, dtype=self.background.dtype, device=self.background.device)
        if share.ndim not in (0, 2) or (share.ndim == 2 and (len(share) != batch or share.shape[1] not in (1, tokens))):
            raise ShapeError(
                f"weight (batch, tokens) is {tuple(share.shape)}, expected a number, ({batch}, 1) or ({batch}, {tokens})."
            )
        share = share.expand(batch, tokens)
        partner = self.index_select(permutation)
        background = share * self.background + (1 - share) * partner.background
        own_part = share[..., None] * (self.values - self.background[..., None])
        partner_part = (1 - share)[..., None] * (partner.values - partner.background[..., None])
        either = torch.where(share <= 0, partner.inside, self.inside & partner.inside)
        return replace(
            self,
            vocabulary=torch.cat([self.vocabulary, partner.vocabulary], dim=1),
            values=background[..., None] + torch.cat([own_part, partner_part], dim=2),
            background=background,
            inside=torch.where(share >= 1, self.inside, either),
        )

    def without(self, rows_mask: Tensor) -> SparseTargets:
        """The same targets, but images where bool (batch,) is set have none.

        Raises:
            ShapeError: other axes.
        """
        if rows_mask.shape != self.inside.shape[:1]:
            raise ShapeError(f"rows_mask (batch,) is {tuple(rows_mask.shape)}, expected ({len(self)},).")
        absent = rows_mask.to(device=self.inside.device, dtype=torch.bool)
        return replace(self, inside=self.inside & ~absent[:, None])

    def index_select(self, index: Tensor) -> SparseTargets:
        """The targets of some images; int64 (n,) or bool (batch,)."""
        index = index.to(self.background.device)
        return replace(
            self,
            vocabulary=self.vocabulary[index],
            values=self.values[index],
            background=self.background[index],
            inside=self.inside[index],
        )

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same targets on a device."""
        return replace(
            self,
            vocabulary=self.vocabulary.to(device, non_blocking=True),
            values=self.values.to(device, non_blocking=True),
            background=self.background.to(device, non_blocking=True),
            inside=self.inside.to(device, non_blocking=True),
        )


def sparse_targets(
    scores: ArrayLike,
    classes: ArrayLike,
    boxes: ArrayLike | None,
    grid: tuple[int, int] = (14, 14),
    num_classes: int = 1000,
    flipped: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    tail: ArrayLike | None = None,
) -> SparseTargets:
    """Targets of the tokens of augmented views.

    Args:
        scores: float (batch, rows, cols, k), stored logits.
        classes: integer (batch, rows, cols, k), in [0, num_classes), no class twice in a cell.
        boxes: float (batch, 4), crops in coordinates normalised to the map's view, x0 y0 x1 y1; None with `affine`.
        grid: rows and columns of the tokens.
        num_classes: K.
        flipped: bool (batch,), view mirrored left to right after the crop.
        affine: float (batch, 2, 3), normalised view -> normalised map, instead of boxes and flipped.
        tail: float (batch, rows, cols), log of the summed exp of the logits that are not stored. With it cells are turned
            into probabilities first and then aligned; without it the logits are aligned, classes not stored count as logit 0,
            and the softmax comes last, as published.

    Returns:
        targets on the scores' device; `inside` is false where a token's centre falls outside of the map.

    Raises:
        ShapeError: axes or values that do not fit.
    """
    return _aligned_targets(scores, classes, boxes, grid, num_classes, flipped, affine, tail)[0]


def pooled_target(
    scores: ArrayLike,
    classes: ArrayLike,
    boxes: ArrayLike | None,
    num_classes: int = 1000,
    flipped: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    tail: ArrayLike | None = None,
) -> SparseTargets:
    """The class target: the map pooled over the view as one token, then softmax.

    Args: as `sparse_targets`.

    Returns:
        targets of (batch, 1 token). Unlike a token's, `inside` asks for any overlap of view and map, not for the centre: a
        view that lies half outside still shows something.

    Raises:
        ShapeError: axes or values that do not fit.
    """
    target, covered = _aligned_targets(scores, classes, boxes, (1, 1), num_classes, flipped, affine, tail)
    return replace(target, inside=covered)


def one_hot_targets(class_index: ArrayLike, num_classes: int, smoothing: float = 0.0) -> SparseTargets:
    """Targets of plain class labels.

    Args:
        class_index: integer (batch,), in [0, num_classes).
        num_classes: K.
        smoothing: share that is spread evenly over all classes, in [0, 1).

    Returns:
        targets of (batch, 1 token).

    Raises:
        ShapeError: axes or values that do not fit.
    """
    index = torch.as_tensor(class_index).to(torch.int64)
    if index.ndim != 1:
        raise ShapeError(f"class_index (batch,) is {tuple(index.shape)}, expected one axis.")
    if not 0.0 <= smoothing < 1.0:
        raise ShapeError(f"smoothing is {smoothing}, expected at least 0 and below 1.")
    _check_classes(index, num_classes, "class_index")
    background = torch.full((len(index), 1), smoothing / num_classes, dtype=torch.float32, device=index.device)
    return SparseTargets(
        vocabulary=index[:, None],
        values=background[..., None] + (1.0 - smoothing),
        background=background,
        inside=torch.ones_like(background, dtype=torch.bool),
        num_classes=num_classes,
        grid=(1, 1),
    )


@torch.no_grad()
def _aligned_targets(
    scores: ArrayLike, classes: ArrayLike, boxes: ArrayLike | None, grid: tuple[int, int], num_classes: int,
    flipped: ArrayLike | None, affine: ArrayLike | None, tail: ArrayLike | None,
) -> tuple[SparseTargets, Tensor]:  # fmt: skip
    """Targets, and bool (batch, tokens): whether a token takes anything from the map."""
    logits = torch.as_tensor(scores).to(torch.float32)
    index = _as_index(classes, logits.device)
    _check_maps(logits, index, num_classes)
    batch, rows, cols, stored = logits.shape
    if min(grid) < 1:
        raise ShapeError(f"grid (rows, cols) is {grid}, expected at least (1, 1).")
    boxes = None if boxes is None else checked_boxes(as_float(boxes, logits.device))
    affine = None if affine is None else checked_affine(as_float(affine, logits.device))
    for name, given in (("boxes", boxes), ("affine", affine)):
        if given is not None and len(given) != batch:
            raise ShapeError(
                f"{name} (batch, ...) are {tuple(given.shape)}, expected a batch of {batch} as the scores."
            )
    with torch.autocast(logits.device.type, enabled=False):  # half precision would turn 1e-5 into 1e-2
        weights = sampling_weights(boxes, grid, (rows, cols), flipped, affine).to(torch.float32)
        covered = weights.sum(-1) > 0
        vocabulary, slots, counts = _vocabularies(index.flatten(1))
        slots = slots.view(batch, rows * cols, stored)
        if tail is None:
            values, background = _softmax_of_aligned(
                logits.flatten(1, 2), slots, vocabulary, counts, weights, num_classes
            )
        else:
            rest = torch.as_tensor(tail, device=logits.device).to(torch.float32)
            if rest.shape != logits.shape[:3]:
                raise ShapeError(
                    f"tail (batch, rows, cols) is {tuple(rest.shape)}, expected {tuple(logits.shape[:3])}."
                )
            values, background = _aligned_probabilities(
                logits.flatten(1, 2), rest.flatten(1), slots, vocabulary, weights, num_classes
            )
        if affine is None:
            assert boxes is not None
            affine = view_affine(boxes, flipped)
        centres = token_centres(affine, grid)
    targets = SparseTargets(
        vocabulary=vocabulary,
        values=values,
        background=background,
        inside=((centres >= 0) & (centres <= 1)).all(-1),
        num_classes=num_classes,
        grid=(int(grid[0]), int(grid[1])),
    )
    return targets, covered


def _softmax_of_aligned(
    logits: Tensor, slots: Tensor, vocabulary: Tensor, counts: Tensor, weights: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Aligned logits, then softmax over K classes of which those outside the vocabulary have logit 0."""
    aligned = weights @ _spread(logits, slots, vocabulary.shape[1])  # (batch, tokens, V)
    padded = _padding(vocabulary, counts)
    outside = (num_classes - counts).to(torch.float32)[:, None]  # (batch, 1) classes that no cell names
    aligned = aligned.masked_fill(padded, float("-inf"))
    highest = aligned.amax(-1)
    highest = torch.where(outside > 0, highest.clamp(min=0), highest)
    values = (aligned - highest[..., None]).exp()
    background = torch.where(outside > 0, (-highest).exp(), torch.zeros_like(highest))
    total = values.sum(-1) + outside * background
    background = background / total
    return torch.where(padded, background[..., None], values / total[..., None]), background


def _aligned_probabilities(
    logits: Tensor, tail: Tensor, slots: Tensor, vocabulary: Tensor, weights: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Probabilities of every cell, the tail spread evenly over what is not stored, then their weighted mean."""
    stored = logits.shape[-1]
    total = torch.logaddexp(logits.logsumexp(-1), tail) if num_classes > stored else logits.logsumexp(-1)
    known = (logits - total[..., None]).exp()  # (batch, cells, k)
    other = (tail - total).exp() / (num_classes - stored) if num_classes > stored else torch.zeros_like(total)
    mass = weights.sum(-1, keepdim=True)
    # a token that sees nothing of the map gets the uniform distribution; it is not inside
    shares = torch.where(mass > 0, weights / mass.clamp(min=1e-12), torch.zeros_like(weights))
    background = (shares @ other[..., None]).squeeze(-1)
    background = torch.where(mass.squeeze(-1) > 0, background, torch.full_like(background, 1 / num_classes))
    above = shares @ _spread(known - other[..., None], slots, vocabulary.shape[1])
    return background[..., None] + above, background


def _spread(values: Tensor, slots: Tensor, width: int) -> Tensor:
    """(batch, cells, k) to (batch, cells, V): each value at its class's place in the vocabulary, zeros elsewhere."""
    return values.new_zeros(*values.shape[:2], width).scatter_(2, slots, values)


def _vocabularies(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct classes of each image.

    Args:
        index: int64 (batch, n).

    Returns:
        vocabulary int64 (batch, V), ascending and padded with 0; each entry's place in it, int64 (batch, n); number of distinct
        classes, int64 (batch,).
    """
    ordered, order = index.sort(dim=1)
    ranks = torch.zeros_like(ordered)
    ranks[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    counts = ranks[:, -1] + 1
    width = int(counts.max()) if len(counts) else 1
    vocabulary = index.new_zeros(len(index), width).scatter_(1, ranks, ordered)
    return vocabulary, torch.empty_like(ranks).scatter_(1, order, ranks), counts


def _padding(vocabulary: Tensor, counts: Tensor) -> Tensor:
    """Bool (batch, 1, V): where the vocabulary is padded."""
    return (torch.arange(vocabulary.shape[1], device=counts.device) >= counts[:, None])[:, None]


def _as_index(classes: ArrayLike, device: torch.device) -> Tensor:
    index = torch.as_tensor(classes, device=device)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ShapeError(f"classes are {index.dtype}, expected integers.")
    return index.to(torch.int64)


def _check_maps(logits: Tensor, index: Tensor, num_classes: int) -> None:
    if logits.ndim != 4:
        raise ShapeError(f"scores (batch, rows, cols, k) are {tuple(logits.shape)}, expected four axes.")
    if index.shape != logits.shape:
        raise ShapeError(
            f"classes (batch, rows, cols, k) are {tuple(index.shape)}, expected {tuple(logits.shape)} as the scores."
        )
    if min(logits.shape[1:]) < 1 or logits.shape[-1] > num_classes:
        raise ShapeError(
            f"scores (batch, rows, cols, k) are {tuple(logits.shape)}; rows, cols and k start at 1, k ends at {num_classes}."
        )
    _check_classes(index, num_classes, "classes")


def _check_classes(index: Tensor, num_classes: int, name: str) -> None:
    if not index.numel():
        return
    low, high = (int(bound) for bound in torch.stack(index.aminmax()).tolist())
    if low < 0 or high >= num_classes:
        raise ShapeError(f"{name} range from {low} to {high}, expected [0, {num_classes}).")
