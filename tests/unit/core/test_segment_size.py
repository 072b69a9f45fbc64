"""Sizes of heads without torch: hand counts, the heads in torch, and how many windows testing looks through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenlabel.core.config import load_config
from tokenlabel.core.segment_size import count_passes, count_windows, head_multiply_adds, head_parameters
from tokenlabel.models.segmentation_heads import Rescaling, create_auxiliary, create_head, levels_read, read_head

TESTING = {"mode": "slide", "window_px": 512, "stride_px": 341, "short_side_px": 512, "scales": [1.0], "flip": False}


@pytest.mark.parametrize("name", ["fcn", "upernet"])
def test_parameters_are_those_of_the_heads_in_torch(raw_config: dict[str, Any], name: str) -> None:
    head = load_config(raw_config).segmentation.heads[name].as_spec()
    scales, width = head["levels"]["scales"], 24
    widths = [*[width] * (len(scales) - 1), head["levels"]["deepest_channels"] or width]
    with torch.device("meta"):
        built = read_head(head)
        parts: list[Any] = [Rescaling(width, widths[level], scales[level]) for level in levels_read(built)]
        parts += [create_head(built, widths, 7), create_auxiliary(built, widths, 7)]
    in_torch = sum(value.numel() for part in parts for value in part.parameters())
    assert head_parameters(head, width, 7) == pytest.approx(in_torch / 1e6, rel=1e-12)


def test_multiply_adds_by_hand() -> None:
    """One 3x3 convolution of 8 channels on 16 channels of 100 tokens at twice the resolution, and 5 classes."""
    head = {
        "kind": "fcn", "channels": 8, "convolutions": 1, "concatenate_input": False, "dropout": 0.0,
        "levels": {"blocks": "even", "scales": [2.0], "deepest_channels": None}, "auxiliary": None,
    }  # fmt: skip
    rescaling = 100 * 16 * 16 * 4 + 400 * 16 * 16
    expected = (rescaling + 400 * (9 * 16 * 8 + 8 * 5)) / 1e9
    assert head_multiply_adds(head, 16, 100, 5, training=False) == pytest.approx(expected)


def test_an_auxiliary_head_costs_in_training_alone(raw_config: dict[str, Any]) -> None:
    head = load_config(raw_config).segmentation.heads["fcn"].as_spec()
    training, testing = (head_multiply_adds(head, 384, 1024, 150, training=training) for training in (True, False))
    assert training - testing == pytest.approx(1024 * 256 * (9 * 384 + 150) / 1e9)


@pytest.mark.parametrize(
    ("size", "changes", "windows"),
    [
        ((512, 512), {}, 1),
        ((512, 683), {}, 2),  # (683 - 512) / 341 is a step
        ((1024, 1366), {}, 2),  # shrunk to 512 x 683
        ((1024, 1366), {"short_side_px": None}, 3 * 4),
        ((100, 100), {"short_side_px": None}, 1),
        ((512, 1024), {"mode": "whole"}, 2),
    ],
)
def test_windows_of_a_photograph(size: tuple[int, int], changes: dict[str, Any], windows: float) -> None:
    assert count_windows(*size, TESTING | changes, 1.0) == windows


def test_all_scales_and_flips_come_to_the_single_scale() -> None:
    assert count_passes((512, 512), TESTING) == 1
    assert count_passes((512, 512), TESTING | {"flip": True}) == 1 + 2
    assert count_passes((512, 512), TESTING | {"flip": True, "scales": [1.0, 1.25]}) == 1 + 2 * (1 + 4)
