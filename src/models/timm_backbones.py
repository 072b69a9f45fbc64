"""Any timm classifier with a token grid or a feature map as a TokenModel: timm's own head, and a linear token head.

Guarantees that weights are never downloaded and that the token grid is measured, not guessed. Made by `registry` for
the names "timm/<name>". Source: paper appendix B.2 (ResNeSt, Mixer) and Table 11.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .tokens import IMAGENET_MEAN, IMAGENET_STD, MixBox, TokenModel, mix_tokens
from .transformer import initialise_linear

TIMM_PREFIX = "timm/"
TIMM_SETTINGS: Mapping[str, Any] = MappingProxyType({"stochastic_depth": 0.0, "token_score_weight": 0.5})


@dataclass(frozen=True)
class _Layout:
    """Where the tokens lie in a tensor: kind "tokens" (batch, prefix + n, c), "nchw" or "nhwc"; and their grid."""

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    def flatten(self, features: Tensor) -> Tensor:
        """(batch, tokens, channels), row by row, without prefix tokens."""
        if self.kind == "tokens":
            return features[:, self.prefix :]
        return features.flatten(2).transpose(1, 2) if self.kind == "nchw" else features.flatten(1, 2)

    def mix(self, features: Tensor, box: MixBox) -> Tensor:
        """Replaces what lies inside the box by the partner's, in a tensor of this layout without prefix tokens."""
        mixed = mix_tokens(self.flatten(features), box.scaled(self.grid))
        return (mixed.transpose(1, 2) if self.kind == "nchw" else mixed).reshape(features.shape)


class TimmTokenModel(TokenModel):
    """A timm classifier with a token head.

    MixToken mixes what the backbone's patch embedding gives. Where there is none (CNNs) or its grid is no multiple of
    the token grid, the images are mixed, with the box scaled to pixels.

    Args:
        name: timm's name without the prefix "timm/".
        num_classes: classes of both heads.
        image_px: side of the images.
        stochastic_depth: timm's drop_path_rate.
        token_score_weight: share of the best token logit in eval mode.

    Raises:
        ConfigError: timm is missing, has no such model, refuses a setting, or the model has no token grid.
    """

    position_name = "backbone.pos_embed"

    def __init__(
        self, name: str, num_classes: int, image_px: int, *, stochastic_depth: float, token_score_weight: float
    ) -> None:
        backbone = _make_backbone(name, num_classes, image_px, stochastic_depth)
        features, embedded = _probe(name, backbone, image_px)
        layout = _feature_layout(name, backbone, features)
        cfg = getattr(backbone, "pretrained_cfg", None) or {}
        super().__init__(
            num_classes,
            image_px,
            layout.grid,
            token_score_weight=token_score_weight,
            mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
            std=tuple(cfg.get("std") or IMAGENET_STD),
        )
        self.layout = layout
        self.embedding_layout = _embedding_layout(embedded, layout.grid)
        self.backbone = backbone
        channels = features.shape[1] if layout.kind == "nchw" else features.shape[-1]
        self.token_head = nn.Linear(channels, num_classes, device=features.device)
        initialise_linear(self.token_head)
        classifier = cfg.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        present = {name for name, _ in backbone.named_modules()}
        self.head_names = (*(f"backbone.{part}" for part in names if part in present), "token_head")

    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        """See `TokenModel.encode`."""
        if mix is not None and self.embedding_layout is None:
            images = _Layout("nchw", (self.image_px, self.image_px)).mix(images, mix)
        with self._mixing(mix):
            features = self.backbone.forward_features(images)
        class_logits = self.backbone.forward_head(features)
        if isinstance(class_logits, tuple):  # distilled models answer per head
            class_logits = torch.stack(class_logits).mean(0)
        return class_logits, self.token_head(self.layout.flatten(features))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimiser factory keeps free of weight decay."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else ()
        return {f"backbone.{name}" for name in names}

    def adapt_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accepts timm's own state dicts; the token head that VOLO already has becomes ours."""
        if any(name.startswith("backbone.") for name in state):
            return dict(state)
        return {
            name.replace("aux_head.", "token_head.", 1) if name.startswith("aux_head.") else f"backbone.{name}": value
            for name, value in state.items()
        }

    @contextlib.contextmanager
    def _mixing(self, mix: MixBox | None) -> Iterator[None]:
        """Mixes the patch embedding's output while the backbone runs.

        The hook lives for one forward on this replica: nothing is left in the module that copies, pickles or
        DistributedDataParallel would see.
        """
        layout, module = self.embedding_layout, _patch_embedding(self.backbone)
        if mix is None or layout is None or module is None:
            yield
            return
        handle = module.register_forward_hook(lambda _module, _inputs, out: layout.mix(out, mix))
        try:
            yield
        finally:
            handle.remove()


def _make_backbone(name: str, num_classes: int, image_px: int, stochastic_depth: float) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"model {TIMM_PREFIX}{name} needs timm: pip install 'tokenlabel[study]'") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"Close names: {', '.join(TIMM_PREFIX + other for other in close)}" if close else "timm.list_models()"
        raise ConfigError(f"unknown model {TIMM_PREFIX + name!r}: timm {timm.__version__} has none such. {hint}")
    options: dict[str, Any] = {}
    if stochastic_depth:
        options["drop_path_rate"] = stochastic_depth
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and cfg.input_size[-1] != image_px:
        options["img_size"] = image_px
    try:
        backbone: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"timm refuses {name} with {options}: {error}") from error
    if getattr(backbone, "aux_head", None) is not None:
        backbone.aux_head = None  # VOLO adds its own token head's scores in forward_head; ours would count twice
    return backbone


def _patch_embedding(backbone: Any) -> nn.Module | None:
    """The module after which tokens exist; the MLP family calls it `stem`, a name that CNNs use for convolutions."""
    from timm.layers.patch_embed import PatchEmbed

    module = getattr(backbone, "patch_embed", None)
    if module is None and isinstance(getattr(backbone, "stem", None), PatchEmbed):
        module = backbone.stem
    return module if isinstance(module, nn.Module) else None


def _probe(name: str, backbone: Any, image_px: int) -> tuple[Tensor, Tensor | None]:
    """Runs one blank image; returns the features and what `patch_embed` gave, if that is a tensor."""
    embedded: list[Any] = []
    patch_embed = _patch_embedding(backbone)
    handle = None
    if patch_embed is not None:
        handle = patch_embed.register_forward_hook(lambda _module, _inputs, out: embedded.append(out))
    device = next(backbone.parameters()).device
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone.forward_features(torch.zeros(1, 3, image_px, image_px, device=device))
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{TIMM_PREFIX}{name} does not run on images of {image_px} px: {error}") from error
    finally:
        backbone.train()
        if handle is not None:
            handle.remove()
    if not isinstance(features, Tensor):
        raise ConfigError(
            f"{TIMM_PREFIX}{name} gives {type(features).__name__} as features; a token model needs a tensor"
        )
    single = embedded[0] if len(embedded) == 1 and isinstance(embedded[0], Tensor) else None
    return features, single


def _feature_layout(name: str, backbone: Any, features: Tensor) -> _Layout:
    if features.ndim == 4:
        return _map_layout(features, getattr(backbone, "num_features", None))
    if features.ndim == 3:
        length = features.shape[1]
        declared = getattr(backbone, "num_prefix_tokens", None)
        for prefix in (0, 1) if declared is None else (declared,):
            side = math.isqrt(length - prefix)
            if side and side * side == length - prefix:
                return _Layout("tokens", (side, side), prefix)
    raise ConfigError(
        f"{TIMM_PREFIX}{name} gives features of shape {tuple(features.shape)}; expected (batch, tokens, channels) with "
        "a square number of tokens, or a feature map"
    )


def _map_layout(features: Tensor, channels: int | None) -> _Layout:
    """Square images give square maps, so the odd axis out is that of the channels."""
    _, second, third, last = features.shape
    if second == third and (third != last or channels == last) and not (second == channels != last):
        return _Layout("nhwc", (second, third))
    return _Layout("nchw", (third, last))


def _embedding_layout(embedded: Tensor | None, grid: tuple[int, int]) -> _Layout | None:
    """The layout of the patch embedding, or None where tokens cannot be mixed in it."""
    if embedded is None or embedded.ndim not in (3, 4):
        return None
    if embedded.ndim == 4:
        layout = _map_layout(embedded, None)
    else:
        side = math.isqrt(embedded.shape[1])
        if side * side != embedded.shape[1]:
            return None
        layout = _Layout("tokens", (side, side))
    fits = all(fine % coarse == 0 for fine, coarse in zip(layout.grid, grid, strict=True))
    return layout if fits else None
