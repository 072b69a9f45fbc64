"""The encoder that LV-ViT and T2T-ViT share: a class token, blocks over all tokens, two heads, learned positions.

Guarantees the parameter names of the published checkpoints. Called by `lvvit` and `t2t`; embeds no patches itself.
Source: paper section 3.1; Dosovitskiy et al. 2020.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core.errors import CheckpointError, ConfigError, unknown_name
from .blocks import Block
from .tokens import MixBox, TokenModel, check_num_classes, mix_tokens

STOCHASTIC_DEPTH_RULES = ("linear", "fixed")  # the released code's drop_path_decay: linear, fix
INIT_STD = 0.02  # of every linear layer and the class token, as in DeiT and the released code


class TokenTransformer(TokenModel):
    """A vision transformer with a class token; subclasses embed the patches.

    A subclass calls `__init__`, makes its patch embedding, then calls `add_encoder`: in that order the state dict lists
    its entries as the published checkpoints do.
    """

    cls_token: nn.Parameter
    pos_embed: Tensor

    def __init__(
        self, num_classes: int, image_px: int, token_px: int, width: int, *, token_score_weight: float
    ) -> None:
        if width < 1:
            raise ConfigError(f"width is {width}; a token needs at least 1 channel")
        side = tokens_per_side(image_px, token_px)
        super().__init__(num_classes, image_px, (side, side), token_score_weight=token_score_weight)
        self.token_px = token_px
        self.width = self.num_features = self.head_hidden_size = width  # the last two are timm's names
        self.grad_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    def add_encoder(
        self,
        *,
        depth: int,
        heads: int,
        mlp_ratio: float,
        stochastic_depth: float,
        stochastic_depth_rule: str,
        residual_scale: float = 1.0,
        attention_scale: float | None = None,
    ) -> None:
        """Adds blocks, final norm and both heads, and initialises every linear layer of the model.

        Raises:
            ConfigError: a setting outside its legal range.
        """
        if depth < 1:
            raise ConfigError(f"depth is {depth}; a transformer needs at least 1 block")
        if heads < 1 or self.width % heads:
            raise ConfigError(f"width {self.width} cannot be divided among heads {heads}; choose a divisor")
        if not 0.0 <= stochastic_depth < 1.0:
            raise ConfigError(f"stochastic_depth is {stochastic_depth}; legal is 0 to below 1")
        if stochastic_depth_rule not in STOCHASTIC_DEPTH_RULES:
            raise unknown_name("stochastic_depth_rule", stochastic_depth_rule, STOCHASTIC_DEPTH_RULES)
        if int(self.width * mlp_ratio) < 1:
            raise ConfigError(f"mlp_ratio is {mlp_ratio}; it must be above 0")
        if not 0 < residual_scale < math.inf:
            raise ConfigError(f"residual_scale is {residual_scale}; it divides the residual branch, so above 0")
        shares = [index / max(depth - 1, 1) for index in range(depth)]  # linear: 0 in the first block, full in the last
        self.blocks = nn.Sequential(
            *(
                Block(
                    self.width,
                    heads,
                    int(self.width * mlp_ratio),
                    drop_rate=stochastic_depth * (share if stochastic_depth_rule == "linear" else 1.0),
                    residual_scale=residual_scale,
                    attention_scale=attention_scale,
                )
                for share in shares
            )
        )
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, self.num_classes)
        self.aux_head = nn.Linear(self.width, self.num_classes)
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        self.apply(initialise_linear)

    @abstractmethod
    def embed_patches(self, images: Tensor) -> Tensor:
        """(batch, 3, image_px, image_px) -> (batch, tokens, width), row by row."""

    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        """See `TokenModel.encode`."""
        features = self.forward_features(images, mix)
        return self.head(features[:, 0]), self.aux_head(features[:, 1:])

    def forward_features(self, images: Tensor, mix: MixBox | None = None) -> Tensor:
        """What both heads read; timm's name for it.

        Args:
            images: (batch, 3, image_px, image_px), normalised.
            mix: see `TokenModel.encode`. Positions are added after mixing, so they are those of the mixed sequence.

        Returns:
            (batch, 1 + tokens, width) after the final norm, the class token first.

        Raises:
            ValueError: images of another size.
        """
        self.check_images(images)
        tokens = self._start(images, mix, self.pos_embed)
        if self.recomputes:
            for block in self.blocks:
                tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = self.blocks(tokens)
        out: Tensor = self.norm(tokens)
        return out

    def forward_levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """See `TokenModel.forward_levels`; the class token takes part in the attention and is left out of the maps."""
        grid = images.shape[-2] // self.token_px, images.shape[-1] // self.token_px
        # Anew in each pass: below 1 % of one on a CPU, nothing at its own size; a kept copy would outlive the weights it is of.
        positions = interpolate_position_embedding({"pos_embed": self.pos_embed}, grid)["pos_embed"]
        tokens, maps = self._start(images, None, positions), {}
        for number, block in enumerate(self.blocks[: max(blocks)], start=1):
            tokens = checkpoint(block, tokens, use_reentrant=False) if self.recomputes else block(tokens)
            if number in blocks:
                maps[number] = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        return [maps[number] for number in blocks]

    @property
    def level_count(self) -> int:
        """See `TokenModel.level_count`: the blocks."""
        return len(self.blocks)

    def keep_levels(self, count: int) -> None:
        """See `TokenModel.keep_levels`."""
        self.blocks = self.blocks[:count]
        for name in ("norm", *self.head_names):
            setattr(self, name, nn.Identity())

    def _start(self, images: Tensor, mix: MixBox | None, positions: Tensor) -> Tensor:
        """(batch, 1 + tokens, width): what the first block takes."""
        tokens = self.embed_patches(images)
        if mix is not None:
            tokens = mix_tokens(tokens, mix)
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return torch.cat((class_token, tokens), dim=1) + positions

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(batch, 1 + tokens, width) -> class logits (batch, classes) by the rule of eval mode; timm's name for it.

        With `pre_logits` the class token, (batch, width).
        """
        if pre_logits:
            return features[:, 0]
        return self.score_classes(self.head(features[:, 0]), self.aux_head(features[:, 1:]))

    def get_classifier(self) -> nn.Module:
        """The head on the class token."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces both heads by new ones, drawn at random.

        Args:
            num_classes: of both, at least 1.
            global_pool: timm passes it; there is a class token, so nothing is pooled.

        Raises:
            ConfigError: num_classes is below 1.
        """
        check_num_classes(num_classes)
        self.num_classes = num_classes
        for name in self.head_names:
            head = nn.Linear(self.width, num_classes).to(self.cls_token)
            initialise_linear(head)
            setattr(self, name, head)

    def set_image_px(self, image_px: int) -> None:
        """Makes the model take images of another size; positions are interpolated. Call it before making an optimiser.

        Raises:
            ConfigError: no multiple of the side of a token.
        """
        side = tokens_per_side(image_px, self.token_px)
        self.image_px, self.grid = image_px, (side, side)
        self.describe_input()
        positions = self.pos_embed
        # T2T-ViT's fixed positions too: its weights know a place by the sinusoid of the grid they were trained on
        resized = interpolate_position_embedding({"pos_embed": positions.detach()}, self.grid)["pos_embed"]
        learned = isinstance(positions, nn.Parameter)
        self.pos_embed = nn.Parameter(resized, requires_grad=positions.requires_grad) if learned else resized

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps no activations inside blocks in training: computed again in the backward pass, gradients unchanged."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's patterns of parameter names by depth, for layer-wise learning rates; heads match none, hence last."""
        blocks = r"^blocks\.(\d+)"
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed|tokens_to_token)",
            "blocks": blocks if coarse else [(blocks, None), (r"^norm", (99999,))],  # 99999: with the last block
        }

    @property
    def recomputes(self) -> bool:
        """Whether this forward should save memory rather than time."""
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()


def tokens_per_side(image_px: int, token_px: int, key: str = "image_px") -> int:
    """Tokens along a side of the image.

    Args:
        image_px: side of the image.
        token_px: of a token.
        key: of the setting that says image_px, for the error.

    Raises:
        ConfigError: image_px is no multiple of token_px; the message names the nearest legal sides.
    """
    if image_px > 0 and image_px % token_px == 0:
        return image_px // token_px
    below = image_px // token_px * token_px
    nearest = f"{below} or {below + token_px}" if below > 0 else f"{token_px}"
    raise ConfigError(f"{key} is {image_px}; it must be a multiple of the token size {token_px} px. Nearest: {nearest}")


def initialise_linear(module: nn.Module) -> None:
    """Draws a linear layer (or a classifier made as a 1x1 convolution) from the truncated normal; bias 0."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def interpolate_position_embedding(
    state_dict: Mapping[str, Tensor], grid: tuple[int, int], *, name: str = "pos_embed", prefix_tokens: int = 1
) -> dict[str, Tensor]:
    """Resamples the position embedding of a checkpoint to another token grid (bicubic); the class token's is kept.

    Args:
        state_dict: holds `name`, float (1, prefix_tokens + side * side, width), of a square grid.
        grid: rows and columns wanted.
        name: the entry to resample.
        prefix_tokens: leading entries without a place in the grid.

    Returns:
        A new dictionary; the same tensors where nothing had to change.

    Raises:
        CheckpointError: the entry is missing or is not of a square grid.

    Source: paper appendix B.1, "Larger input resolution".
    """
    positions = state_dict.get(name)
    if positions is None or positions.ndim != 3:
        raise CheckpointError(f"the checkpoint has no position embedding {name!r} of shape (1, tokens, width)")
    prefix, places = positions[:, :prefix_tokens], positions[:, prefix_tokens:]
    count, width = places.shape[1:]
    side = math.isqrt(count)
    if side == 0 or side * side != count:
        raise CheckpointError(
            f"{name}: {positions.shape[1]} positions are not {prefix_tokens} and a square grid; cannot interpolate"
        )
    if (side, side) == grid:
        return dict(state_dict)
    square = places.float().transpose(1, 2).reshape(1, width, side, side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    return {**state_dict, name: torch.cat((prefix, resized.to(positions.dtype)), dim=1)}
