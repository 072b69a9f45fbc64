"""Targets of tokens and images, made from stored score maps without ever building all classes.

Only the classes in an image's own map differ from one background value per token: `SparseTargets` keeps these. It is exact,
not an approximation. Called by the stages' supervision and by other training code; never reads files, needs no gradient.

Source: paper section 3.2 and the released code (softmax after RoIAlign of a map that is zero where nothing is stored).
Differs: x and y in the right order, the stored view is used; with a tail, mass that was not stored is kept (our extension).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .geometry import (
    ArrayLike,
    Geometry,
    Sampling,
    ShapeError,
    as_float,
    checked_affine,
    checked_boxes,
    sampling,
    token_centres,
    view_affine,
)


@dataclass(frozen=True)
class SparseTargets:
    """Distributions over all classes, most of which share one value.

    dense[b, t, c] = background[b, t] + sum over v with vocabulary[b, v] == c of (values[b, t, v] - background[b, t]).

    Attributes:
        vocabulary: int64 (batch, V), padded with class 0; a class may occur more than once after a blend.
        values: float32 (batch, tokens, V); the background where padded.
        background: float32 (batch, tokens), probability of each class outside the vocabulary.
        inside: bool (batch, tokens), whether the token has a target at all.
        num_classes: K.
        grid: rows and columns of the tokens; padding tokens come after these.
    """

    vocabulary: Tensor
    values: Tensor
    background: Tensor
    inside: Tensor
    num_classes: int
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.background)

    @property
    def unlabeled(self) -> Tensor:
        """Number of images without any token inside, which add nothing to a loss; int64, no axes, not read back."""
        return (~self.inside.any(1)).sum()

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
            ShapeError: other axes, or a number outside [0, 1]; values of tensors are not looked at.
        """
        batch, tokens = self.background.shape
        if permutation.shape != (batch,) or permutation.is_floating_point():
            raise ShapeError(
                f"permutation (batch,) is {permutation.dtype} {tuple(permutation.shape)}, expected integers ({batch},)."
            )
        if isinstance(weight, float | int) and not 0.0 <= weight <= 1.0:
            raise ShapeError(f"weight is {weight}, expected 0 to 1.")
        share = torch.as_tensor(weight, dtype=self.background.dtype, device=self.background.device)
        if share.ndim not in (0, 2) or (share.ndim == 2 and (len(share) != batch or share.shape[1] not in (1, tokens))):
            raise ShapeError(
                f"weight (batch, tokens) is {tuple(share.shape)}, expected a number, ({batch}, 1) or ({batch}, {tokens})."
            )
        return _weighted(self, self.index_select(permutation), share.expand(batch, tokens))

    def smoothed(self, smoothing: float) -> SparseTargets:
        """The released code's label smoothing: every class by 1 - smoothing + smoothing / K, plus smoothing / K.

        The sum over the classes becomes 1 + smoothing / K; `one_hot_targets` differs, as does the released code for labels.

        Raises:
            ShapeError: smoothing is not in [0, 1).
        """
        off = _checked_smoothing(smoothing) / self.num_classes
        on = 1.0 - smoothing + off
        return replace(self, values=self.values * on + off, background=self.background * on + off)

    def padded(self, vocabulary: int | None = None, tokens: int | None = None) -> SparseTargets:
        """The same targets in arrays of fixed sizes, so that a compiled loss meets one shape only.

        Args:
            vocabulary: V to pad to, None to leave it; rows x cols x k of the maps (times two after a blend) is always enough.
            tokens: number of tokens to pad to, None to leave it; the added ones are not inside.

        Raises:
            ShapeError: a size below the present one.
        """
        batch, present, entries = self.values.shape
        width, length = entries if vocabulary is None else vocabulary, present if tokens is None else tokens
        if width < entries or length < present:
            raise ShapeError(
                f"the targets have a vocabulary of {entries} and {present} tokens, more than the {width} and {length} to "
                "pad to; give sizes that the largest batch fits in."
            )
        background = self.background.new_full((batch, length), 1 / self.num_classes)
        background[:, :present] = self.background
        values = background[..., None].repeat(1, 1, width)
        values[:, :present, :entries] = self.values
        return replace(
            self,
            vocabulary=torch.nn.functional.pad(self.vocabulary, (0, width - entries)),
            values=values,
            background=background,
            inside=torch.nn.functional.pad(self.inside, (0, length - present)),
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

    def filled(self, other: SparseTargets) -> SparseTargets:
        """The same targets, but tokens that have none have the other's."""
        return _weighted(self, other, self.inside.to(self.background.dtype))

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
    temperature: float = 1.0,
    geometry: Geometry = "exact",
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
        temperature: the logits are divided by it, > 0. With a tail, each class that is not stored counts as
            tail - log(number of such classes), divided likewise: exact for an even tail, above 1 an upper bound of its mass
            otherwise, below 1 a lower one.
        geometry: `released` reads boxes and flips as the released code does (an affine: see `released_affine`).

    Returns:
        targets on the scores' device; `inside` is false where a token's centre falls outside of the map, and true everywhere
        in the released geometry, which knows no outside.

    Raises:
        ShapeError: axes or values that do not fit.
    """
    return _aligned_targets(scores, classes, boxes, grid, num_classes, flipped, affine, tail, temperature, geometry)[0]


def pooled_target(
    scores: ArrayLike,
    classes: ArrayLike,
    boxes: ArrayLike | None,
    num_classes: int = 1000,
    flipped: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    tail: ArrayLike | None = None,
    temperature: float = 1.0,
    geometry: Geometry = "exact",
) -> SparseTargets:
    """The class target: the map pooled over the view as one token, then softmax.

    Args: as `sparse_targets`.

    Returns:
        targets of (batch, 1 token). Unlike a token's, `inside` asks for any overlap of view and map, not for the centre: a
        view that lies half outside still shows something.

    Raises:
        ShapeError: axes or values that do not fit.
    """
    target, covered = _aligned_targets(
        scores, classes, boxes, (1, 1), num_classes, flipped, affine, tail, temperature, geometry
    )
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
    index = _as_index(class_index, torch.as_tensor(class_index).device, "class_index")
    if index.ndim != 1:
        raise ShapeError(f"class_index (batch,) is {tuple(index.shape)}, expected one axis.")
    _checked_smoothing(smoothing)
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


def blended_target(map_target: SparseTargets, label_target: SparseTargets) -> SparseTargets:
    """The released code's blend of both class targets: 0.9 of the map's, 0.5 where its best class is the label's.

    Args:
        map_target: of `pooled_target`, one token. Where it is not inside the label's target counts alone.
        label_target: of `one_hot_targets`, for the same images and classes.

    Raises:
        ShapeError: axes that do not fit.

    Source: tlt 0.2.0, loss/cross_entropy.py. There Mixup and CutMix come before the blend and MixToken after it; to follow,
    give targets that are mixed already.
    """
    if (map_target.background.shape, map_target.num_classes) != (
        label_target.background.shape,
        label_target.num_classes,
    ):
        raise ShapeError(
            f"label_target (batch, tokens), classes are {tuple(label_target.background.shape)}, {label_target.num_classes}, "
            f"expected {tuple(map_target.background.shape)}, {map_target.num_classes} as the map's."
        )
    agree = _best_class(map_target) == _best_class(label_target)
    share = torch.where(map_target.inside, 0.9 - 0.4 * agree.to(torch.float32), 0.0)
    return _weighted(map_target, label_target, share)


def participation_mask(
    batch: int, tokens: int, share: float, seed: int, device: torch.device | str | None = None
) -> Tensor:
    """Which tokens take part in the loss: round(share * tokens), at least one, drawn anew for every image.

    The count is of all tokens; those among them that have no target (outside the photograph) drop out in the loss.

    Args:
        batch: images.
        tokens: of each.
        share: in (0, 1].
        seed: equal seeds give equal masks, whatever the device; no global generator is touched.
        device: where the mask is to lie.

    Returns:
        bool (batch, tokens).

    Raises:
        ShapeError: a share outside (0, 1].

    Source: paper, Fig. 4 left.
    """
    if not 0.0 < share <= 1.0:
        raise ShapeError(f"share of participating tokens is {share}, expected above 0 and at most 1.")
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(batch, tokens, generator=generator).argsort(1).argsort(1)
    return (ranks < max(1, round(share * tokens))).to(device)


def _weighted(first: SparseTargets, second: SparseTargets, share: Tensor) -> SparseTargets:
    """share * first + (1 - share) * second, share float (batch, tokens)."""
    background = share * first.background + (1 - share) * second.background
    first_part = share[..., None] * (first.values - first.background[..., None])
    second_part = (1 - share)[..., None] * (second.values - second.background[..., None])
    either = torch.where(share <= 0, second.inside, first.inside & second.inside)
    return replace(
        first,
        vocabulary=torch.cat([first.vocabulary, second.vocabulary], dim=1),
        values=background[..., None] + torch.cat([first_part, second_part], dim=2),
        background=background,
        inside=torch.where(share >= 1, first.inside, either),
    )


def _best_class(targets: SparseTargets) -> Tensor:
    """The class with the highest value, int64 (batch, tokens); entries of one class are summed before.

    Where every named class lies below the background it is the first class that is not named.
    """
    vocabulary, places = _vocabularies(targets.vocabulary, targets.num_classes)
    above = targets.values - targets.background[..., None]
    summed = above.new_zeros(*above.shape[:2], vocabulary.shape[1]).scatter_add_(
        2, places[:, None].expand_as(above), above
    )
    best, place = summed.max(-1)
    unnamed = torch.ones(len(vocabulary), targets.num_classes, device=vocabulary.device).scatter_(
        1, targets.vocabulary, 0.0
    )
    some, first = unnamed.max(1, keepdim=True)  # max gives the first of equals
    return torch.where((best < 0) & (some > 0), first, vocabulary.gather(1, place))


def _checked_smoothing(smoothing: float) -> float:
    if not 0.0 <= smoothing < 1.0:
        raise ShapeError(f"smoothing is {smoothing}, expected at least 0 and below 1.")
    return smoothing


@torch.no_grad()
def _aligned_targets(
    scores: ArrayLike, classes: ArrayLike, boxes: ArrayLike | None, grid: tuple[int, int], num_classes: int,
    flipped: ArrayLike | None, affine: ArrayLike | None, tail: ArrayLike | None, temperature: float, geometry: Geometry,
) -> tuple[SparseTargets, Tensor]:  # fmt: skip
    """Targets, and bool (batch, tokens): whether a token takes anything from the map."""
    logits = torch.as_tensor(scores).to(torch.float32)
    index = _as_index(classes, logits.device)
    _check_maps(logits, index, num_classes)
    if not temperature > 0:
        raise ShapeError(f"temperature is {temperature}, expected a number above 0.")
    batch, rows, cols = logits.shape[:3]
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
        view = sampling(boxes, grid, (rows, cols), flipped, affine, geometry)
        vocabulary, slots = _vocabularies(index.flatten(1), num_classes)
        slots = slots.view(logits.shape)
        if tail is None:
            values, background = _softmax_of_aligned(logits / temperature, slots, vocabulary, view, num_classes)
        else:
            rest = torch.as_tensor(tail, device=logits.device).to(torch.float32)
            if rest.shape != logits.shape[:3]:
                raise ShapeError(
                    f"tail (batch, rows, cols) is {tuple(rest.shape)}, expected {tuple(logits.shape[:3])}."
                )
            if bool((rest.isnan() | rest.isposinf()).any()):
                raise ShapeError(
                    "tail holds infinite values or none; it is minus infinity only where every class is stored."
                )
            values, background = _aligned_probabilities(logits, rest, slots, vocabulary, view, num_classes, temperature)
        covered = view.mass() > 0
        if geometry == "released":
            covered = inside = torch.ones_like(covered)
        else:
            if affine is None:
                assert boxes is not None
                affine = view_affine(boxes, flipped)
            centres = token_centres(affine, grid)
            inside = ((centres >= 0) & (centres <= 1)).all(-1)
            covered &= _overlaps(affine)
    targets = SparseTargets(
        vocabulary=vocabulary,
        values=values,
        background=background,
        inside=inside,
        num_classes=num_classes,
        grid=(int(grid[0]), int(grid[1])),
    )
    return targets, covered


def _overlaps(affine: Tensor) -> Tensor:
    """Bool (batch, 1): whether the box around a view meets the map; beside it, roi_align still finds the border cells."""
    corners = affine.new_tensor([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    places = affine @ corners  # (batch, x and y, corners)
    return ((places.amax(-1) > 0) & (places.amin(-1) < 1)).all(-1, keepdim=True)


def _softmax_of_aligned(
    logits: Tensor, slots: Tensor, vocabulary: Tensor, view: Sampling, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Aligned logits, then softmax over K classes of which those outside the vocabulary have logit 0.

    Where the vocabulary is padded the aligned logit is 0 as well, so that padding and the classes beyond it count alike: as one
    more place of the softmax.
    """
    entries = vocabulary.shape[1]
    beyond = num_classes - entries
    if beyond:
        aligned = view.resample(logits, slots, entries + 1)  # (batch, tokens, V + 1)
        aligned[..., -1] = math.log(beyond)
        values = aligned.softmax(-1)
        return values[..., :-1], values[..., -1] / beyond
    aligned = view.resample(logits, slots, entries)
    values = aligned.softmax(-1)
    background = values.amax(-1) * (-aligned.amax(-1)).exp()  # that of logit 0, for images that do not name every class
    return values, background.clamp(max=1)


def _aligned_probabilities(
    logits: Tensor, tail: Tensor, slots: Tensor, vocabulary: Tensor, view: Sampling, num_classes: int, temperature: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Probabilities of every cell, the tail spread evenly over what is not stored, then their weighted mean."""
    absent = num_classes - logits.shape[-1]
    # logit of each class that is not stored, were they all alike
    even = (tail - math.log(absent) if absent else torch.full_like(tail, -math.inf)) / temperature
    logits = logits / temperature
    total = logits.logsumexp(-1)
    if absent:
        total = torch.logaddexp(total, even + math.log(absent))
    known = (logits - total[..., None]).exp()  # (batch, rows, cols, k)
    other = (even - total).exp()[..., None]
    # a token that sees nothing of the map gets the uniform distribution; it is not inside
    mass = view.mass().to(torch.float32)[..., None]
    seen = mass > 0
    background = torch.where(
        seen, view.resample(other, torch.zeros_like(other, dtype=torch.int64), 1) / mass, 1 / num_classes
    )
    above = torch.where(seen, view.resample(known - other, slots, vocabulary.shape[1]) / mass, 0.0)
    return background + above, background[..., 0]


def _vocabularies(index: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The distinct classes of each image.

    Args:
        index: int64 (batch, n).
        num_classes: K.

    Returns:
        vocabulary int64 (batch, V), ascending and padded with 0; each entry's place in it, int64 (batch, n).
    """
    named = torch.zeros(len(index), num_classes, dtype=torch.int32, device=index.device)
    ranks = named.scatter_(1, index, 1).cumsum(1, dtype=torch.int32)
    places = ranks.gather(1, index).sub_(1).to(torch.int64)
    width = int(ranks[:, -1].max()) if len(index) else 1
    return index.new_zeros(len(index), width).scatter_(1, places, index), places


def _as_index(classes: ArrayLike, device: torch.device, name: str = "classes") -> Tensor:
    index = torch.as_tensor(classes, device=device)
    if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
        raise ShapeError(f"{name} are {index.dtype}, expected integers.")
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
    if not bool(torch.isfinite(logits).all()):
        raise ShapeError("scores hold infinite values or none; labels of unreadable photographs are zeros.")


def _check_classes(index: Tensor, num_classes: int, name: str) -> None:
    if not index.numel():
        return
    low, high = (int(bound) for bound in torch.stack(index.aminmax()).tolist())
    if low < 0 or high >= num_classes:
        raise ShapeError(f"{name} range from {low} to {high}, expected [0, {num_classes}).")
