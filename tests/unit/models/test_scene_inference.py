"""Windows, scales and mirror images against the whole image, where they must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import SegmentationModel, TokenModel
from tokenlabel.models.scene_inference import predict_scene, window_starts

from .segmenters import small

Make = Callable[..., TokenModel]


class NoContext(nn.Module):
    """Classes of a pixel by its own colour: any window must give what the whole image gives."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 4, 1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        logits: Tensor = self.colours(images)
        return logits


def predict(model: nn.Module, image: Tensor, **changed: Any) -> Tensor:
    options: dict[str, Any] = {"mode": "slide", "window_px": 16, "stride_px": 10} | changed
    return predict_scene(cast(SegmentationModel, model), image, **options)


@given(length=st.integers(1, 300), window=st.integers(1, 80), share=st.floats(0, 1))
def test_windows_leave_no_pixel_out(length: int, window: int, share: float) -> None:
    stride = max(int(window * share), 1)
    starts = window_starts(length, window, stride)
    ends = [min(start + window, length) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == length
    assert all(later <= end for later, end in zip(starts[1:], ends, strict=False))
    assert all(end - start == min(window, length) for start, end in zip(starts, ends, strict=True))
    assert len(set(starts)) == len(starts)


def test_windows_of_mmsegmentations_defaults() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(896, 512, 341) == [0, 341, 384]


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (9, 50), (5, 7)])
@pytest.mark.parametrize("flip", [False, True])
def test_without_context_windows_and_flips_change_nothing(size: tuple[int, int], flip: bool) -> None:
    model, image = NoContext(), torch.randn(3, *size)
    with torch.no_grad():
        expected = model.colours(image[None])[0].softmax(dim=0)
    found = predict(model, image, flip=flip)
    assert found.dtype == torch.float32
    assert found.shape == (4, *size)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_batches_of_windows_change_nothing(batch: int) -> None:
    model, image = NoContext(), torch.randn(3, 40, 37)
    expected = predict(model, image)
    one_by_one = len(model.shapes)
    torch.testing.assert_close(predict(model, image, batch=batch), expected)
    assert model.shapes[one_by_one][0] == min(batch, 16)
    assert sum(shape[0] for shape in model.shapes[one_by_one:]) == one_by_one == 16


def test_a_window_as_large_as_the_image_is_the_whole_image(tiny: Make) -> None:
    model, image = small(tiny()), torch.randn(3, 40, 53)
    whole = predict(model, image, mode="whole")
    assert torch.equal(predict(model, image, window_px=64, stride_px=20), whole)
    assert not torch.allclose(predict(model, image, window_px=32, stride_px=20), whole)  # this model sees context
    with torch.no_grad():
        torch.testing.assert_close(whole, model(image[None])[0].softmax(dim=0))
    torch.testing.assert_close(whole.sum(dim=0), torch.ones(40, 53))


def test_mirror_images_are_turned_back(tiny: Make) -> None:
    model, image = small(tiny()), torch.randn(3, 48, 64)
    found = predict(model, image, mode="whole", flip=True)
    torch.testing.assert_close(predict(model, image.flip(2), mode="whole", flip=True).flip(2), found)
    plain, mirrored = predict(model, image, mode="whole"), predict(model, image.flip(2), mode="whole").flip(2)
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(found, (plain + mirrored) / 2)


def test_scales_are_averaged_as_probabilities(tiny: Make) -> None:
    model, image = small(tiny()), torch.randn(3, 48, 64)

    def at(scale: float) -> Tensor:
        return predict(model, image, mode="whole", scales=(scale,))

    found = predict(model, image, mode="whole", scales=(0.75, 1.0, 1.5))
    torch.testing.assert_close(found, (at(0.75) + at(1.0) + at(1.5)) / 3)
    assert not torch.allclose(at(0.75), at(1.5))
    with torch.no_grad():
        doubled = nn.functional.interpolate(image[None], scale_factor=2, mode="bilinear", antialias=True)
        logits = nn.functional.interpolate(model(doubled), size=(48, 64), mode="bilinear")
    torch.testing.assert_close(at(2.0), logits[0].softmax(dim=0))


@pytest.mark.parametrize("size", [(48, 64), (47, 61), (20, 75), (5, 7)])
def test_windows_scales_and_mirror_images_together_are_what_they_are_by_hand(tiny: Make, size: tuple[int, int]) -> None:
    """Sides that no window, step or token divides, and such as are smaller than a window or a token."""
    model, image, window, stride = small(tiny()).eval(), torch.randn(3, *size), 32, 20
    parts = []
    for scale in (0.75, 1.0, 1.25):
        height, width = (round(side * scale) for side in size)
        scaled = nn.functional.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]
        for turned in (scaled, scaled.flip(2)):
            total, count = torch.zeros(model.num_classes, height, width), torch.zeros(height, width)
            for bottom in {min(top + window, height) for top in range(0, max(height - window + stride, 1), stride)}:
                for right in {min(left + window, width) for left in range(0, max(width - window + stride, 1), stride)}:
                    place = slice(max(bottom - window, 0), bottom), slice(max(right - window, 0), right)
                    with torch.no_grad():
                        total[:, *place] += model(turned[None, :, *place])[0]
                    count[place] += 1
            logits = total / count if turned is scaled else (total / count).flip(2)
            parts.append(nn.functional.interpolate(logits[None], size=size, mode="bilinear")[0].softmax(0))
    found = predict(model, image, window_px=window, stride_px=stride, scales=(0.75, 1.0, 1.25), flip=True, batch=2)
    torch.testing.assert_close(found, torch.stack(parts).mean(0))


def test_large_constant_regions_survive_every_scale() -> None:
    """Left half one colour, right half another: at any scale the halves stay where they are."""
    model, image = NoContext(), torch.zeros(3, 32, 64)
    image[0, :, :32], image[1, :, 32:] = 5.0, 5.0
    with torch.no_grad():
        model.colours.weight.copy_(torch.eye(4, 3)[:, :, None, None])
    found = predict(model, image, scales=(0.5, 0.75, 1.0, 1.75), flip=True).argmax(dim=0)
    assert (found[:, :30] == 0).all()
    assert (found[:, 34:] == 1).all()


def test_half_precision_is_summed_in_single(tiny: Make) -> None:
    model, image = small(tiny()), torch.randn(3, 40, 48)
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(model, image, flip=True, scales=(0.75, 1.25))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=0), torch.ones(40, 48))
    torch.testing.assert_close(found, predict(model, image, flip=True, scales=(0.75, 1.25)), atol=0.02, rtol=0.1)


def test_the_models_mode_and_gradients_are_left(tiny: Make) -> None:
    model = small(tiny()).train()
    model.backbone.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = predict(model, torch.randn(3, 32, 32))
    assert model.training
    assert not model.backbone.training
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mode": "sliding"}, r"testing: unknown mode 'sliding'. Did you mean 'slide'\? Legal: slide, whole"),
        ({"stride_px": 17}, "stride_px is 17; expected 1 to window_px 16"),
        ({"stride_px": 0}, "stride_px is 0"),
        ({"scales": ()}, r"scales are \[\]"),
        ({"scales": (1.0, 0.0)}, r"scales are \[1\.0, 0\.0\]; expected at least one number above 0"),
        ({"scales": (float("nan"),)}, "scales are"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_options_out_of_range(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        predict(NoContext(), torch.zeros(3, 20, 20), **changed)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (3, 0, 8)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image is .*; expected \(3, height, width\)"):
        predict(NoContext(), torch.zeros(shape))
