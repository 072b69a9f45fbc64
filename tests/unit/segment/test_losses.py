"""The loss of pixels: its definition, that it does not depend on micro-batches, and ignored images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenlabel.data.scenes import IGNORED
from tokenlabel.models.segmentation import SegmentationOutput
from tokenlabel.segment.losses import SceneLoss, pixel_cross_entropy


def scenes(seed: int = 0, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Logits (batch, 5, 3, 4) and masks (batch, 12, 16), of which the last is ignored throughout."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 5, 3, 4, generator=generator)
    masks = torch.randint(IGNORED, 5, (batch, 12, 16), generator=generator, dtype=torch.int16)
    masks[-1] = IGNORED
    return logits, masks


def test_it_is_the_sum_over_labelled_pixels_by_the_number_of_all() -> None:
    logits, masks = scenes()
    resized = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False).log_softmax(1)
    total = sum(
        -resized[b, masks[b, y, x], y, x]
        for b in range(4) for y in range(12) for x in range(16) if masks[b, y, x] >= 0
    )  # fmt: skip
    assert float(pixel_cross_entropy(logits, masks)) == pytest.approx(float(total) / masks.numel(), rel=1e-5)


def test_an_ignored_image_adds_nothing_and_counts() -> None:
    logits, masks = scenes()
    logits.requires_grad_()
    loss = pixel_cross_entropy(logits, masks)
    without = pixel_cross_entropy(logits[:3].detach(), masks[:3])
    assert float(loss.detach()) == pytest.approx(float(without) * 3 / 4, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[3].abs().sum() == 0
    assert float(pixel_cross_entropy(logits[3:].detach(), masks[3:])) == 0.0


def test_a_step_has_one_loss_however_it_is_cut() -> None:
    logits, masks = scenes()
    whole = pixel_cross_entropy(logits, masks)
    for micro_batch in (1, 2, 3):
        parts = zip(logits.split(micro_batch), masks.split(micro_batch), strict=True)
        assert float(sum(len(one) / 4 * pixel_cross_entropy(one, mask) for one, mask in parts)) == pytest.approx(
            float(whole), rel=1e-6
        )


def test_it_is_computed_in_single_precision_whatever_the_logits_are() -> None:
    logits, masks = scenes()
    with torch.autocast("cpu", torch.bfloat16):
        half = pixel_cross_entropy(logits.bfloat16(), masks)
    assert half.dtype == torch.float32
    assert float(half) == float(pixel_cross_entropy(logits.bfloat16().float(), masks))


@pytest.mark.parametrize("has_auxiliary", [True, False])
def test_the_auxiliary_head_counts_by_its_weight(has_auxiliary: bool) -> None:
    logits, masks = scenes()
    other = scenes(1)[0] if has_auxiliary else None

    class Said(nn.Module):
        def forward(self, images: Tensor) -> SegmentationOutput:
            return SegmentationOutput(logits, other)

    batch: Any = SimpleNamespace(images=torch.zeros(4, 3, 12, 16), masks=masks)
    losses = SceneLoss(0.4, has_auxiliary=has_auxiliary)
    loss, parts = losses.loss(Said(), batch, 0, 0)
    assert set(parts) == set(losses.parts)
    assert int(parts["unlabeled"]) == 1
    expected = float(pixel_cross_entropy(logits, masks))
    assert float(parts["pixel_loss"]) == pytest.approx(expected)
    if other is not None:
        assert float(parts["auxiliary_loss"]) == pytest.approx(float(pixel_cross_entropy(other, masks)))
        expected += 0.4 * float(parts["auxiliary_loss"])
    assert float(loss) == pytest.approx(expected)
