"""Descriptions of heads as the released configurations have them, and small ones, for the tests of segmenters."""

from __future__ import annotations

from typing import Any

from tokenlabel.models import SegmentationModel, TokenModel, create_segmenter


def upernet(channels: int = 256, deepest: int | None = 2048, **changed: Any) -> dict[str, Any]:
    """UPerNet; the released configurations' with the defaults, for LV-ViT-L with 512 channels."""
    levels = {"blocks": "late", "scales": [4.0, 2.0, 1.0, 1.0], "deepest_channels": deepest}
    auxiliary = {"level": 2, "channels": channels, "convolutions": 1, "dropout": 0.1}
    head = {"kind": "upernet", "channels": channels, "pool_sizes": [1, 2, 3, 6], "dropout": 0.1}
    return {**head, "levels": levels, "auxiliary": auxiliary, **changed}


def fcn(channels: int = 256, **changed: Any) -> dict[str, Any]:
    """FCN on the last block at twice the tokens' resolution."""
    levels = {"blocks": "late", "scales": [1.0, 2.0], "deepest_channels": None}
    auxiliary = {"level": 0, "channels": channels, "convolutions": 1, "dropout": 0.1}
    head = {"kind": "fcn", "channels": channels, "convolutions": 2, "concatenate_input": True, "dropout": 0.1}
    return {**head, "levels": levels, "auxiliary": auxiliary, **changed}


def small(backbone: TokenModel, head: dict[str, Any] | None = None, num_classes: int = 3) -> SegmentationModel:
    """A segmenter of a few thousand weights, in eval mode."""
    return create_segmenter(backbone, head or fcn(8), num_classes).eval()
