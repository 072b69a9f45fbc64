"""Multiply-adds and parameters of an LV-ViT from its settings alone, at any resolution and without torch.

Called by the plan, for the ablations' and the caps' networks have no entry in the catalogue, and attention grows faster than
the pixels. Norms and activations are left out of the multiply-adds: below 1 % of what fvcore counts, which a test checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SETTINGS = ("depth", "width", "mlp_ratio", "stem_kernels", "stem_strides", "stem_channels")


def has_size(settings: Mapping[str, Any]) -> bool:
    """Whether settings say enough."""
    return all(settings.get(name) is not None for name in SETTINGS)


def count_multiply_adds(settings: Mapping[str, Any], image_px: int, num_classes: int) -> float:
    """10^9 multiply-adds of the forward pass of one image, both heads included.

    Args:
        settings: as `ModelSettings` has them, none of SETTINGS missing.
        image_px: side of the image, pixels.
        num_classes: of both heads.
    """
    depth, width = settings["depth"], settings["width"]
    side, source, stem = image_px, 3, 0.0
    for kernel, stride, channels in _convolutions(settings):
        side //= stride
        stem += side**2 * kernel**2 * source * channels
        source = channels
    patches = side**2
    tokens = patches + 1  # the class token
    block = tokens * width**2 * (4 + 2 * settings["mlp_ratio"])  # query, key, value, projection; feed-forward
    block += 2 * tokens**2 * width  # query times key, weights times value
    return float((stem + depth * block + tokens * width * num_classes) / 1e9)


def count_parameters(settings: Mapping[str, Any], image_px: int, num_classes: int) -> float:
    """10^6 learnable values, both heads included; arguments as for `count_multiply_adds`."""
    width, ratio = settings["width"], settings["mlp_ratio"]
    convolutions = _convolutions(settings)
    source, stem = 3, 0
    for kernel, _, channels in convolutions:
        stem += kernel**2 * source * channels
        source = channels
    stem += 2 * settings["stem_channels"] * (len(convolutions) - 1) + width  # batch norms; the last one's bias
    patches = (image_px // math.prod(settings["stem_strides"])) ** 2
    block = width**2 * (4 + 2 * ratio) + width * (1 + ratio + 1 + 4)  # weights; biases and two norms
    embeddings = (patches + 1) * width + width  # positions, class token
    heads = 2 * (width + 1) * num_classes
    return float((stem + settings["depth"] * block + embeddings + 2 * width + heads) / 1e6)


def _convolutions(settings: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Kernel, stride and channels of each convolution of the stem; the last makes the tokens."""
    kernels, strides = settings["stem_kernels"], settings["stem_strides"]
    channels = [settings["stem_channels"]] * (len(kernels) - 1) + [settings["width"]]
    return list(zip(kernels, strides, channels, strict=True))
