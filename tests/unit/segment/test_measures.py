"""mIoU, pixel accuracy and class IoU against torchmetrics, and what is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tokenlabel.data.scenes import IGNORED
from tokenlabel.segment.measures import Confusion


def random_maps(seed: int, classes: int, absent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and masks (3, 20, 30) of which the last `absent` classes have no pixel; a tenth is ignored."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, classes - absent, (3, 20, 30), generator=generator, dtype=torch.int16)
    guesses = torch.randint(0, classes - absent, masks.shape, generator=generator)
    predicted = torch.where(torch.rand(masks.shape, generator=generator) < 0.6, masks.long(), guesses)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = IGNORED
    return predicted, masks


@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize(("seed", "classes"), [(0, 3), (1, 11), (2, 150)])
def test_the_measures_are_those_of_torchmetrics(seed: int, classes: int, absent: int) -> None:
    if classes - absent < 2:
        absent = 1
    predicted, masks = random_maps(seed, classes, absent)
    found = Confusion(classes)
    for one, mask in zip(predicted, masks, strict=True):
        found.add(one, mask)
    judge = {
        average: MulticlassJaccardIndex(classes, average=average, ignore_index=IGNORED) for average in ("macro", "none")
    }
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED)
    truth = masks.long()
    assert found.miou / 100 == pytest.approx(float(judge["macro"](predicted, truth)), abs=1e-6)
    assert found.pixel_accuracy / 100 == pytest.approx(float(accuracy(predicted, truth)), abs=1e-6)
    each = judge["none"](predicted, truth)
    there = ~found.class_iou.isnan()
    torch.testing.assert_close(found.class_iou[there] / 100, each[there].double(), atol=1e-6, rtol=0)
    assert there.tolist() == [index < classes - absent for index in range(classes)]


def test_ignored_pixels_count_nowhere_and_a_class_predicted_in_vain_counts() -> None:
    found = Confusion(4)
    found.add(torch.tensor([[0, 0, 2], [1, 1, 3]]), torch.tensor([[0, 0, 0], [1, 1, IGNORED]], dtype=torch.int16))
    assert found.class_pixels.tolist() == [3, 2, 0, 0]
    assert found.class_iou[:3].tolist() == pytest.approx([200 / 3, 100.0, 0.0])  # class 2: predicted, in no mask
    assert math.isnan(found.class_iou[3])  # predicted where it is ignored only
    assert found.miou == pytest.approx((200 / 3 + 100) / 3)
    assert found.pixel_accuracy == pytest.approx(80.0)


def test_of_no_pixel_there_is_no_share() -> None:
    found = Confusion(3)
    found.add(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), IGNORED))
    assert math.isnan(found.miou)
    assert math.isnan(found.pixel_accuracy)


def test_a_mask_of_another_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), the mask is \(3, 2\)"):
        Confusion(3).add(torch.zeros(2, 3), torch.zeros(3, 2))
