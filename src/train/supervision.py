"""From a micro-batch to the loss: class target, token targets and the three ways of mixing two photographs.

Equations 2 to 7 of the paper; called by the loop through `job`. MixToken mixes inside the model; CutMix and Mixup mix pixels
here, and their token targets with them. Draws derive from (seed, epoch, step, micro-batch), so they are the same after a
resume and for any number of processes. As in the released code, a micro-batch draws one mixing for all its photographs, and
erased pixels keep their token's target: what is hidden is still asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.seeds import derived_seed
from ..labels import (
    SparseTargets,
    blended_target,
    one_hot_targets,
    participation_mask,
    pooled_target,
    sparse_targets,
    token_cross_entropy,
)
from ..models import MixBox, draw_mix_box, partner_order
from .batches import MicroBatch


@dataclass(frozen=True)
class MixDraw:
    """What is mixed in one micro-batch; each None when not."""

    token_box: MixBox | None = None
    pixel_box: MixBox | None = None
    blend: float | None = None


class Supervision:
    """A recipe's loss on a model's outputs.

    Args:
        recipe: of the run's spec.
        num_classes: of the model's heads.
        grid: rows and columns of the model's tokens.
        image_px: side of its images.
        seed: of the run.

    Attributes:
        parts: names of what `loss` returns beside the loss.
    """

    def __init__(
        self, recipe: dict[str, Any], num_classes: int, grid: tuple[int, int], image_px: int, seed: int
    ) -> None:
        self._recipe, self._num_classes, self._seed = recipe, num_classes, seed
        self._grid, self._image_px = grid, image_px
        self._learns_tokens = recipe["supervision"] == "token" and recipe["token_weight"] != 0
        self.parts = ("class_loss", "token_loss", "unlabeled") if self._learns_tokens else ("class_loss",)

    def loss(
        self, model: nn.Module, batch: MicroBatch, epoch: int, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Class loss + token_weight x token loss.

        Args:
            model: a TokenModel in training mode, or one that is wrapped for several processes.
            batch: on the model's device.
            epoch: for the draws.
            step: for the draws.

        Returns:
            the loss, and by name its parts and `unlabeled`, the number of photographs without any token target.
        """
        recipe = self._recipe
        rng = random.Random(derived_seed("mix", self._seed, epoch, step, batch.index))
        draw = draw_mix(recipe, self._grid, self._image_px, rng)
        output = model(mix_pixels(batch.images, draw), draw.token_box)

        class_target = mix_class_target(self._class_target(batch), draw)
        class_loss = token_cross_entropy(output.class_logits[:, None], class_target)
        if not self._learns_tokens:
            return class_loss, {"class_loss": class_loss}
        targets = mix_token_targets(self._token_targets(batch), draw, self._image_px)
        participation = None
        if recipe["participation"] < 1.0:
            tokens = targets.inside.shape[1]
            participation = participation_mask(
                len(targets), tokens, recipe["participation"], rng.getrandbits(62), batch.images.device
            )
        token_loss = token_cross_entropy(output.token_logits, targets, participation)
        loss = class_loss + recipe["token_weight"] * token_loss
        return loss, {"class_loss": class_loss, "token_loss": token_loss, "unlabeled": targets.unlabeled}

    def _class_target(self, batch: MicroBatch) -> SparseTargets:
        recipe = self._recipe
        label = one_hot_targets(batch.class_index, self._num_classes, recipe["label_smoothing"])
        if recipe["class_target"] == "label" or batch.scores is None:
            return label
        pooled = pooled_target(*self._maps(batch), **self._reading(batch)).smoothed(recipe["label_smoothing"])
        if recipe["class_target"] == "blend":
            return blended_target(pooled, label)
        return pooled.filled(label)  # a view that operations moved off the map shows nothing of it

    def _token_targets(self, batch: MicroBatch) -> SparseTargets:
        targets = sparse_targets(*self._maps(batch), grid=self._grid, **self._reading(batch))
        return targets.smoothed(self._recipe["label_smoothing"])

    def _maps(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, None]:
        assert batch.scores is not None
        assert batch.classes is not None
        return batch.scores, batch.classes, None

    def _reading(self, batch: MicroBatch) -> dict[str, Any]:
        return {
            "num_classes": self._num_classes,
            "affine": batch.affine,
            "tail": batch.tail if self._recipe["label_mass"] == "exact" else None,
            "geometry": self._recipe["geometry"],
        }


def draw_mix(recipe: dict[str, Any], grid: tuple[int, int], image_px: int, rng: random.Random) -> MixDraw:
    """Draws a micro-batch's mixing.

    mixtoken_mixup does both to the same photographs, as the paper's "using MixToken and MixUp at the same time";
    cutmix_mixup does one of them by the toss of a coin, as DeiT does.
    """
    kind = recipe["mix"]
    if kind == "none" or rng.random() >= recipe["mix_probability"]:
        return MixDraw()
    if kind == "cutmix_mixup":
        kind = rng.choice(("cutmix", "mixup"))
    blend = rng.betavariate(recipe["mixup_alpha"], recipe["mixup_alpha"]) if "mixup" in kind else None
    token_box = draw_mix_box(grid, recipe["mix_alpha"], rng) if "mixtoken" in kind else None
    pixel_box = draw_mix_box((image_px, image_px), recipe["mix_alpha"], rng) if kind == "cutmix" else None
    return MixDraw(token_box, pixel_box, blend)


def mix_pixels(images: torch.Tensor, draw: MixDraw) -> torch.Tensor:
    """CutMix's box or Mixup's blend of each photograph with its partner; (batch, 3, height, width)."""
    if draw.blend is not None:
        images = draw.blend * images + (1 - draw.blend) * images.flip(0)
    if draw.pixel_box is not None:
        (top, bottom), (left, right) = draw.pixel_box.rows, draw.pixel_box.cols
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        images = mixed
    return images


def mix_class_target(target: SparseTargets, draw: MixDraw) -> SparseTargets:
    """Blends class targets by Mixup's weight and by the real area of the boxes (equation 7)."""
    partners = partner_order(len(target.background)).to(target.background.device)
    for weight in (
        draw.blend,
        draw.pixel_box.kept if draw.pixel_box else None,
        draw.token_box.kept if draw.token_box else None,
    ):
        if weight is not None:
            target = target.blend(partners, torch.tensor(weight, device=target.background.device))
    return target


def mix_token_targets(targets: SparseTargets, draw: MixDraw, image_px: int) -> SparseTargets:
    """Blends token targets by what each token shows; MixToken needs nothing, its logits come back unmixed."""
    partners = partner_order(len(targets.background)).to(targets.background.device)
    if draw.blend is not None:
        targets = targets.blend(partners, torch.tensor(draw.blend, device=partners.device))
    if draw.pixel_box is not None:
        kept = 1.0 - draw.pixel_box.mask().reshape(1, 1, image_px, image_px).float()
        share = nn.functional.adaptive_avg_pool2d(kept, targets.grid).flatten(1)  # (1, tokens): own pixels per token
        targets = targets.blend(partners, share.to(partners.device).expand(len(partners), -1))
    return targets
