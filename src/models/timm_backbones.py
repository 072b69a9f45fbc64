"""Any timm classifier with a token grid or a feature map as a TokenModel: timm's own head, and a linear token head.

Guarantees that weights are never downloaded and that the token grid is measured, not guessed. Made by `registry` for
the names "timm/<name>". MixToken swaps what the backbone's patch embedding gives; a network without one (a CNN, or a
stem of convolutions) sees mixed images instead, cut along the same box scaled to pixels, as CutMix and the paper's
ReLabel do. Source: paper appendix B.2 (ResNeSt, Mixer) and Table 11.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from .timm_layouts import TokenLayout, accept_any_size, measure_layouts, patch_embedding, timm_says
from .timm_names import TIMM_PREFIX, check_timm_name
from .tokens import IMAGENET_MEAN, IMAGENET_STD, MixBox, TokenModel, check_num_classes
from .transformer import initialise_linear, interpolate_position_embedding

__all__ = ["TIMM_PREFIX", "TIMM_SETTINGS", "TimmTokenModel", "classifier_names"]

TIMM_SETTINGS: Mapping[str, Any] = MappingProxyType({"stochastic_depth": 0.0, "token_score_weight": 0.5})


class TimmTokenModel(TokenModel):
    """A timm classifier with a token head.

    Args:
        name: timm's name without the prefix "timm/", with or without a weights tag (which chooses `mean` and `std`).
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
        layout, embedding_layout, channels = measure_layouts(TIMM_PREFIX + name, backbone, image_px)
        cfg = backbone.pretrained_cfg
        super().__init__(
            num_classes,
            image_px,
            layout.grid,
            token_score_weight=token_score_weight,
            mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
            std=tuple(cfg.get("std") or IMAGENET_STD),
        )
        self.pretrained_cfg |= {key: cfg[key] for key in ("crop_pct", "interpolation") if cfg.get(key)}
        self.architecture = name
        self.stochastic_depth = stochastic_depth
        self.layout = layout
        self.embedding_layout = embedding_layout  # None: images are mixed
        self.backbone = backbone
        self.token_head = nn.Linear(channels, num_classes, device=next(backbone.parameters()).device)
        initialise_linear(self.token_head)
        present = {part for part, _ in backbone.named_modules()}
        self.head_names = (*(f"backbone.{part}" for part in classifier_names(cfg) if part in present), "token_head")
        self.num_features = backbone.num_features  # what timm's own code asks of a model
        self.head_hidden_size = getattr(backbone, "head_hidden_size", backbone.num_features)

    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        """See `TokenModel.encode`."""
        features = self.forward_features(images, mix)
        return self._classify(features), self.token_head(self.layout.flatten(features))

    def forward_features(self, images: Tensor, mix: MixBox | None = None) -> Tensor:
        """The backbone's features in timm's own shape: (batch, prefix + tokens, channels) or a map.

        Args:
            images: (batch, 3, image_px, image_px), normalised.
            mix: see `TokenModel.encode`.
        """
        if mix is not None and self.embedding_layout is None:
            images = TokenLayout("NCHW", (self.image_px, self.image_px)).mix(images, mix)
        with self._mixing(mix):
            features: Tensor = self.backbone.forward_features(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Class logits (batch, classes) of features by the rule of eval mode; with `pre_logits` the pooled features."""
        if pre_logits:
            pooled: Tensor = self.backbone.forward_head(features, pre_logits=True)
            return pooled
        return self.score_classes(self._classify(features), self.token_head(self.layout.flatten(features)))

    def get_classifier(self) -> Any:
        """Timm's class head; a tuple where a distilled model has two."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces all heads by new ones, drawn at random.

        Args:
            num_classes: of each, at least 1.
            global_pool: timm's, where the backbone knows it; None leaves it.

        Raises:
            ConfigError: num_classes is below 1.
        """
        check_num_classes(num_classes)
        self.backbone.reset_classifier(num_classes, **({} if global_pool is None else {"global_pool": global_pool}))
        self.num_classes = num_classes
        self.token_head = nn.Linear(self.token_head.in_features, num_classes).to(self.token_head.weight)
        initialise_linear(self.token_head)

    def set_image_px(self, image_px: int) -> None:
        """Makes the model take images of another size; positions are interpolated. Before an optimiser is made.

        Raises:
            ConfigError: the network takes no such images, or its weights belong to one size (Mixer); nothing changed.
        """
        if image_px == self.image_px:
            return
        name = TIMM_PREFIX + self.architecture
        # Swin's set_input_size changes its windows too: a checkpoint would then be of no model that create_model makes
        windows_change = type(self.backbone).__module__.startswith("timm.models.swin_transformer")
        if hasattr(self.backbone, "set_input_size") and not windows_change:
            backbone = copy.deepcopy(self.backbone)
            with timm_says(f"{name} does not take images of {image_px} px"):
                backbone.set_input_size(img_size=(image_px, image_px))
        elif self.backbone.pretrained_cfg.get("fixed_input_size"):
            backbone = self._rebuilt(image_px)
        else:
            backbone = self.backbone
        layout, embedding_layout, _ = measure_layouts(name, backbone, image_px)
        self.backbone, self.layout, self.embedding_layout = backbone, layout, embedding_layout
        self.image_px, self.grid = image_px, layout.grid
        self.describe_input()

    @property
    def level_count(self) -> int:
        """See `TokenModel.level_count`: what timm's record of features lists, blocks or stages.

        Raises:
            ConfigError: timm gives no intermediate features of this network.
        """
        if not hasattr(self.backbone, "forward_intermediates") or not getattr(self.backbone, "feature_info", None):
            raise ConfigError(
                f"{TIMM_PREFIX}{self.architecture} gives no intermediate features in timm, which a segmenter needs; ViT, DeiT, "
                "Swin, ResNet and ConvNeXt do"
            )
        return len(self.backbone.feature_info)

    def forward_levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """See `TokenModel.forward_levels`."""
        maps: list[Tensor] = self.backbone.forward_intermediates(
            images, indices=[block - 1 for block in blocks], norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def keep_levels(self, count: int) -> None:
        """See `TokenModel.keep_levels`."""
        self.backbone.prune_intermediate_layers(list(range(count)), prune_norm=True, prune_head=True)
        setattr(self, self.head_names[-1], nn.Identity())
        accept_any_size(self.backbone)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Timm's own: activations inside blocks are computed again in the backward pass.

        Raises:
            ConfigError: the backbone cannot.
        """
        with timm_says(f"{TIMM_PREFIX}{self.architecture} has no gradient checkpointing"):
            self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimiser factory keeps free of weight decay."""
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else ()
        return {f"backbone.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's patterns of parameter names by depth, for layer-wise learning rates; heads match none, hence last."""

        def ours(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return rf"^backbone\.(?:{pattern.replace('^', '')})"  # timm matches from the start anyway
            if isinstance(pattern, (tuple, list)):
                return [(ours(part), suffix) for part, suffix in pattern]
            return pattern

        groups = self.backbone.group_matcher(coarse=coarse)
        return {group: ours(pattern) for group, pattern in groups.items()}

    def adapt_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accepts timm's own state dicts; the token head that VOLO already has becomes ours, at any image size."""
        state = dict(state)
        if not any(name.startswith("backbone.") for name in state):
            state = {
                name.replace("aux_head.", "token_head.", 1) if name.startswith("aux_head.") else f"backbone.{name}": v
                for name, v in state.items()
            }
        positions = state.get(self.position_name)
        if positions is not None and positions.ndim == 4:  # VOLO's; (1, tokens, width) is interpolated by the reader
            state[self.position_name] = _resample(positions, self.state_dict()[self.position_name])
        return state

    def _classify(self, features: Tensor) -> Tensor:
        logits: Any = self.backbone.forward_head(features)
        # distilled models answer per head in training
        return torch.stack(logits).mean(0) if isinstance(logits, tuple) else logits

    @contextlib.contextmanager
    def _mixing(self, mix: MixBox | None) -> Iterator[None]:
        """Mixes the patch embedding's output while the backbone runs.

        The hook lives for one forward on this replica: nothing is left in the module that copies, pickles or
        DistributedDataParallel would see.
        """
        layout, module = self.embedding_layout, patch_embedding(self.backbone)
        if mix is None or layout is None or module is None:
            yield
            return

        def swap(_module: nn.Module, _inputs: Any, out: Any) -> Any:
            return (layout.mix(out[0], mix), *out[1:]) if isinstance(out, tuple) else layout.mix(out, mix)

        handle = module.register_forward_hook(swap)
        try:
            yield
        finally:
            handle.remove()

    def _rebuilt(self, image_px: int) -> Any:
        """The same network made anew for another size, where timm cannot change it in place."""
        fresh = _make_backbone(self.architecture, self.num_classes, image_px, self.stochastic_depth)
        pool = getattr(self.backbone, "global_pool", None)  # reset_classifier may have changed it
        if pool is not None and pool != fresh.global_pool:
            fresh.reset_classifier(self.num_classes, global_pool=pool)
        state, learnt = fresh.state_dict(), {name for name, _ in fresh.named_parameters()}
        for name, value in self.backbone.state_dict().items():
            if value.shape == state[name].shape:
                state[name] = value
            elif name == "pos_embed":
                state[name] = _resample(value, state[name])
            elif name in learnt:
                raise ConfigError(
                    f"{TIMM_PREFIX}{self.architecture}: {name} belongs to images of {self.image_px} px and cannot be "
                    f"interpolated to {image_px} px. Make a new model for that size."
                )
        fresh.load_state_dict(state)
        for name, parameter in self.backbone.named_parameters():
            fresh.get_parameter(name).requires_grad_(parameter.requires_grad)
        if getattr(self.backbone, "grad_checkpointing", False):
            fresh.set_grad_checkpointing()
        return fresh.to(self.token_head.weight).train(self.training)


def _make_backbone(name: str, num_classes: int, image_px: int, stochastic_depth: float) -> Any:
    check_num_classes(num_classes)
    check_timm_name(name)
    import timm

    options: dict[str, Any] = {}
    if stochastic_depth:
        options["drop_path_rate"] = stochastic_depth
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and cfg.input_size[-1] != image_px:
        options["img_size"] = image_px
    own_px = f" (its own size is {cfg.input_size[-1]} px)" if "img_size" in options else ""
    with timm_says(f"timm refuses {name} with {options or 'its own settings'}{own_px}"):
        try:
            backbone: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise ConfigError(
                f"{TIMM_PREFIX}{name} has no stochastic depth in timm. Set stochastic_depth to 0."
            ) from None
    if getattr(backbone, "aux_head", None) is not None:
        # VOLO adds its own token head's scores in forward_head; ours takes its place, so they would count twice
        backbone.aux_head, backbone.use_aux_head = None, False
    return backbone


def classifier_names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Timm's class heads by its own record; two for distilled models."""
    names = cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _resample(positions: Tensor, like: Tensor) -> Tensor:
    """Interpolates (1, rows, cols, width) or (1, prefix + tokens, width) to the shape of `like`."""
    if positions.shape == like.shape:
        return positions
    if positions.ndim == 4:
        resized = F.interpolate(positions.permute(0, 3, 1, 2).float(), size=like.shape[1:3], mode="bicubic")
        return resized.permute(0, 2, 3, 1).to(positions.dtype)
    side = math.isqrt(like.shape[1])
    name, prefix = "pos_embed", like.shape[1] - side * side
    return interpolate_position_embedding({name: positions}, (side, side), name=name, prefix_tokens=prefix)[name]
