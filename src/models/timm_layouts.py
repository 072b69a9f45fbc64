"""Where a timm backbone's tokens lie: in its features, and in what its patch embedding gives.

Guarantees a grid that one blank image has shown, and sides of images that the patches divide. Called by
`timm_backbones`. Timm states the axes of maps (output_fmt) and the number of prefix tokens; neither states the grid.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .tokens import MixBox, mix_tokens

# Modules after which tokens exist, by the names that timm's families give them. The MLP family says `stem`, as CNNs do.
PATCH_EMBEDDINGS = ("patch_embed", "stem", "patch_embeds.0", "embeds.proj")
TIMM_ERRORS = (TypeError, AssertionError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens lie in a tensor.

    Attributes:
        axes: timm's word: "NLC" (batch, prefix + tokens, channels), "NCHW" or "NHWC".
        grid: rows and columns of the tokens.
        prefix: tokens before them (class, distillation, registers); NLC only.
    """

    axes: str
    grid: tuple[int, int]
    prefix: int = 0

    def flatten(self, features: Tensor) -> Tensor:
        """(batch, tokens, channels), row by row, without prefix tokens."""
        if self.axes == "NLC":
            return features[:, self.prefix :]
        return features.flatten(2).transpose(1, 2) if self.axes == "NCHW" else features.flatten(1, 2)

    def mix(self, features: Tensor, box: MixBox) -> Tensor:
        """Replaces what lies inside the box by the partner's, in a tensor of this layout without prefix tokens."""
        mixed = mix_tokens(self.flatten(features), box.scaled(self.grid))
        return (mixed.transpose(1, 2) if self.axes == "NCHW" else mixed).reshape(features.shape)


def patch_embedding(backbone: nn.Module) -> nn.Module | None:
    """The module after which tokens exist; None where there is none."""
    from timm.layers import PatchEmbed

    for path in PATCH_EMBEDDINGS:
        try:
            module = backbone.get_submodule(path)
        except AttributeError:
            continue
        if path != "stem" or isinstance(module, PatchEmbed):
            return module
    return None


def measure_layouts(name: str, backbone: Any, image_px: int) -> tuple[TokenLayout, TokenLayout | None, int]:
    """Runs one blank image through the backbone.

    Args:
        name: for errors, with the prefix "timm/".
        backbone: a timm classifier, left as it was.
        image_px: side of the image.

    Returns:
        The layout of its features; that of its patch embedding, or None where tokens cannot be mixed in it; channels
        of the features.

    Raises:
        ConfigError: the backbone does not run on such images, or has no token grid.
    """
    features, embedding = _run(name, backbone, image_px)
    if not isinstance(features, Tensor):
        raise ConfigError(f"{name} gives {type(features).__name__} as features; a token model needs one tensor")
    layout = _feature_layout(name, backbone, features)
    if embedding is not None and image_px != _own_px(backbone):  # CNNs round up; so do some, at their own size
        _check_side(name, backbone, image_px, layout)
    if embedding and any(fine % coarse for fine, coarse in zip(embedding.grid, layout.grid, strict=True)):
        embedding = None  # a box of tokens is no box of these patches
    return layout, embedding, features.shape[1] if layout.axes == "NCHW" else features.shape[-1]


def accept_any_size(backbone: Any) -> None:
    """Makes a network take images of any height and width, where timm has a switch for it (`dynamic_img_size`).

    ViT, DeiT and their like then resample their positions in each pass, Swin makes its masks anew; CNNs need nothing.
    """
    if not hasattr(backbone, "dynamic_img_size"):
        return
    embedding, made_dynamic = backbone.patch_embed, backbone.dynamic_img_size
    embedding.strict_img_size, backbone.dynamic_img_size = False, True
    if embedding.flatten and not made_dynamic:  # ViT resamples positions on the map of patches, before it is flattened
        embedding.flatten, embedding.output_fmt = False, type(embedding.output_fmt).NHWC
    for module in backbone.modules():
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True


@contextlib.contextmanager
def timm_says(what: str) -> Iterator[None]:
    """Turns a refusal of timm's into one line.

    Raises:
        ConfigError: `what`, and timm's own words.
    """
    try:
        yield
    except TIMM_ERRORS as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what}: {words}") from None


def _run(name: str, backbone: Any, image_px: int) -> tuple[Any, TokenLayout | None]:
    """Features of a blank image, and the layout of what the patch embedding gave (if it ran once, on images)."""
    embedded: list[Any] = []
    module = patch_embedding(backbone)
    handle = module.register_forward_hook(lambda _module, _inputs, out: embedded.append(out)) if module else None
    anchor = next(backbone.parameters())
    image = torch.zeros(1, 3, image_px, image_px, device=anchor.device, dtype=anchor.dtype)
    training = backbone.training
    backbone.eval()
    try:
        with (
            torch.no_grad(),
            timm_says(f"{name} is no token model at {image_px} px (its own size is {_own_px(backbone)} px)"),
        ):
            features = backbone.forward_features(image)
            backbone.forward_head(features)  # some are encoders without a classifier
            embedding = _embedding_layout(embedded[0], module, image) if len(embedded) == 1 else None
    finally:
        backbone.train(training)
        if handle is not None:
            handle.remove()
    return features, embedding


def _own_px(backbone: Any) -> int:
    return int(backbone.pretrained_cfg["input_size"][-1])


def _embedding_layout(embedded: Any, module: Any, image: Tensor) -> TokenLayout | None:
    embedded = _first(embedded)
    if not isinstance(embedded, Tensor) or embedded.ndim not in (3, 4):
        return None
    if embedded.ndim == 3:
        side = math.isqrt(embedded.shape[1])
        return TokenLayout("NLC", (side, side)) if side * side == embedded.shape[1] else None
    axes = getattr(module, "output_fmt", None)
    if axes is None:
        try:  # an image twice as wide shows which axis is that of the columns
            wide = _first(module(torch.cat((image, image), dim=3)))
            axes = "NHWC" if wide.shape[2] != embedded.shape[2] else "NCHW"
        except TIMM_ERRORS:  # takes one size only; its map is square, so the odd axis out is that of the channels
            axes = "NHWC" if embedded.shape[1] == embedded.shape[2] != embedded.shape[3] else "NCHW"
    return _map_layout(axes, embedded)


def _first(out: Any) -> Any:
    """Some embeddings give their grid too: (tokens, (rows, cols))."""
    return out[0] if isinstance(out, tuple) else out


def _map_layout(axes: str, features: Tensor) -> TokenLayout:
    """Axes may be a member of timm's enumeration, which equals its text but is not printed so."""
    if axes == "NHWC":
        return TokenLayout("NHWC", (features.shape[1], features.shape[2]))
    return TokenLayout("NCHW", (features.shape[2], features.shape[3]))


def _feature_layout(name: str, backbone: Any, features: Tensor) -> TokenLayout:
    if features.ndim == 4:
        return _map_layout(getattr(backbone, "output_fmt", "NCHW"), features)
    if features.ndim == 3:
        length = features.shape[1]
        declared = getattr(backbone, "num_prefix_tokens", None)
        for prefix in (0, 1) if declared is None else (declared,):
            side = math.isqrt(length - prefix)
            if side > 1 and side * side == length - prefix:
                return TokenLayout("NLC", (side, side), prefix)
    raise ConfigError(
        f"{name} gives features of shape {tuple(features.shape)}; expected (batch, tokens, channels) with a square "
        "number of tokens, or a feature map"
    )


def _check_side(name: str, backbone: Any, image_px: int, layout: TokenLayout) -> None:
    """Timm drops the pixels of a part of a patch, or pads them; either way tokens would not lie where labels do."""
    stages = getattr(backbone, "feature_info", None)
    token_px = stages[-1]["reduction"] if stages else round(image_px / layout.grid[0])
    if image_px % token_px:
        below = image_px // token_px * token_px
        nearest = f"{below} or {below + token_px}" if below else f"{token_px}"
        raise ConfigError(
            f"{name}: image_px is {image_px}; it must be a multiple of its token, {token_px} px. Nearest: {nearest}"
        )
