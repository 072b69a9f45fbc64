"""What every model of the package is: a classifier that also classifies each token, and MixToken between images.

Guarantees that token logits are handed out in the order of the image they came from, so token targets are never mixed.
Called by the engine, the stages and other training code; never builds targets or losses.
Source: paper section 3.3, equations 5 to 7. Differs from equation 6: there the token labels are mixed like the tokens;
here (as in the released code) the token logits inside the box are swapped back, which gives the same loss.
"""

from __future__ import annotations

import contextlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EVALUATION_CROP = 0.9  # share of the shorter side; the released LV-ViT-T and -S, DeiT, T2T-ViT


@dataclass(frozen=True)
class MixBox:
    """The half-open box [rows) x [cols) of the token grid whose tokens come from the partner image.

    Attributes:
        rows: first row and the row after the last, in tokens, y down.
        cols: first column and the column after the last, in tokens, x right.
        grid: rows and columns of the token grid.

    Raises:
        ValueError: the box does not lie inside the grid.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        for axis, (start, stop), size in zip(("rows", "cols"), (self.rows, self.cols), self.grid, strict=True):
            if not 0 <= start <= stop <= size:
                raise ValueError(f"MixBox: {axis} [{start}, {stop}) do not lie inside the grid's {size}")

    @property
    def kept(self) -> float:
        """Share of the grid outside the box, in [0, 1]: the weight of the image's own class target (equation 7)."""
        inside = (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])
        return 1.0 - inside / (self.grid[0] * self.grid[1])

    def mask(self, device: torch.device | str | None = None) -> Tensor:
        """Bool (tokens,), row by row; True where the token comes from the partner image."""
        row, col = (torch.arange(size, device=device) for size in self.grid)
        in_rows = (row >= self.rows[0]) & (row < self.rows[1])
        in_cols = (col >= self.cols[0]) & (col < self.cols[1])
        return (in_rows[:, None] & in_cols[None, :]).flatten()

    def scaled(self, grid: tuple[int, int]) -> MixBox:
        """The same box on another grid (pixels, or the finer grid of a hierarchical model), rounded to its cells."""

        def scale(edges: tuple[int, int], axis: int) -> tuple[int, int]:
            start, stop = (round(edge * grid[axis] / self.grid[axis]) for edge in edges)
            return start, stop

        return MixBox(scale(self.rows, 0), scale(self.cols, 1), grid)


def draw_mix_box(grid: tuple[int, int], alpha: float, rng: random.Random) -> MixBox:
    """Draws the box as the released code does: area 1 - lambda, lambda ~ Beta(alpha, alpha), uniform centre, clipped.

    Each side is sqrt(1 - lambda) of the grid's, rounded down to an even number of cells: a box reaches as far below its
    centre cell as above it, so on 14 x 14 tokens a side is 0, 2, ..., 14 before it is clipped. The share that counts for
    the class target is the clipped box's (`MixBox.kept`), not lambda.

    Args:
        grid: rows and columns, of tokens or of pixels.
        alpha: of the symmetric Beta distribution, above 0.
        rng: the only source of randomness.

    Raises:
        ConfigError: alpha is not positive and finite.

    Source: Yun et al. 2019 (CutMix), as paper section 3.3 prescribes; rounding of the released code.
    """
    if not 0 < alpha < math.inf:  # Beta's sampler never ends with others
        raise ConfigError(f"mix_token alpha is {alpha}; it must be above 0 (leave MixToken off to mix nothing)")
    side = math.sqrt(1.0 - rng.betavariate(alpha, alpha))

    def span(size: int) -> tuple[int, int]:
        half = int(size * side) // 2
        centre = rng.randrange(size)
        return max(centre - half, 0), min(centre + half, size)

    return MixBox(span(grid[0]), span(grid[1]), grid)


def partner_order(batch: int) -> Tensor:
    """Int64 (batch,): the image each image is mixed with: the batch reversed, as in the released code.

    The middle image of an odd batch is its own partner.
    """
    return torch.arange(batch - 1, -1, -1)


def mix_tokens(tokens: Tensor, mix: MixBox) -> Tensor:
    """Replaces the tokens inside the box by the partner's; done twice it gives back the input.

    Args:
        tokens: (batch, tokens, channels), row by row of `mix.grid`.
        mix: the box.
    """
    return torch.where(mix.mask(tokens.device)[:, None], tokens.flip(0), tokens)


class TokenOutput(NamedTuple):
    """What a model says in training, or of dense prediction.

    Attributes:
        class_logits: (batch, classes), of the whole (mixed) image.
        token_logits: (batch, tokens, classes), row by row of the grid, of the image itself even when tokens were mixed.
        grid: rows and columns of the tokens.
    """

    class_logits: Tensor
    token_logits: Tensor
    grid: tuple[int, int]


def check_num_classes(num_classes: int) -> None:
    """Refuses a classifier without classes with a ConfigError."""
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; a classifier needs at least 1 (features: forward_features)")


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; afterwards each of its modules has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class TokenModel(nn.Module, ABC):
    """A classifier with logits for the image and for every token.

    Attributes:
        num_classes: classes of both heads.
        image_px: side of the square images it takes.
        grid: rows and columns of its tokens.
        token_score_weight: share of the best token logit in the class logits of eval mode.
        mean, std: per channel, of RGB in [0, 1]; images are given as (image - mean) / std.
        pretrained_cfg: input_size, mean, std, crop_pct and interpolation, as timm's functions read them.
        head_names: sub-modules whose size depends on num_classes.
        position_name: entry of the state dict that holds the position embedding, or "" where it has none.
    """

    head_names: tuple[str, ...] = ("head", "aux_head")
    position_name: str = "pos_embed"

    def __init__(
        self,
        num_classes: int,
        image_px: int,
        grid: tuple[int, int],
        *,
        token_score_weight: float,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        if not math.isfinite(token_score_weight) or token_score_weight < 0:
            raise ConfigError(f"token_score_weight is {token_score_weight}; it must be finite and at least 0")
        self.num_classes = num_classes
        self.image_px = image_px
        self.grid = grid
        self.token_score_weight = token_score_weight
        self.mean = mean
        self.std = std
        self.pretrained_cfg: dict[str, Any] = {"crop_pct": EVALUATION_CROP, "interpolation": "bicubic"}
        self.describe_input()

    def describe_input(self) -> None:
        """Brings `pretrained_cfg` up to date: where timm's functions look for the preprocessing."""
        size = (3, self.image_px, self.image_px)
        self.pretrained_cfg |= {"input_size": size, "mean": self.mean, "std": self.std}

    @abstractmethod
    def encode(self, images: Tensor, mix: MixBox | None) -> tuple[Tensor, Tensor]:
        """Class logits (batch, classes) and token logits (batch, tokens, classes) of the mixed sequence, in its order.

        Args:
            images: (batch, 3, image_px, image_px), normalised; their shape has been checked.
            mix: box whose tokens are taken from the partner after patch embedding, or None.
        """

    def forward(self, images: Tensor, mix: MixBox | None = None) -> TokenOutput | Tensor:
        """Classifies images.

        Args:
            images: float (batch, 3, image_px, image_px), normalised with `mean` and `std`.
            mix: MixToken's box on `grid`; image b is mixed with image `partner_order(batch)[b]`. Training only.

        Returns:
            In training mode a TokenOutput; in eval mode class logits (batch, classes) plus `token_score_weight` times
            the largest logit over the tokens, class by class (the released code's rule).

        Raises:
            ValueError: images or box of another size, or a box in eval mode.
        """
        if self.training:
            return self._outputs(images, mix)
        if mix is not None:
            raise ValueError("a MixBox was given in eval mode; tokens are mixed in training only")
        output = self._outputs(images, None)
        return self.score_classes(output.class_logits, output.token_logits)

    def score_classes(self, class_logits: Tensor, token_logits: Tensor) -> Tensor:
        """The rule of eval mode: class logits (batch, classes) plus `token_score_weight` times the largest token logit.

        Args:
            class_logits: (batch, classes).
            token_logits: (batch, tokens, classes).
        """
        return class_logits + self.token_score_weight * token_logits.amax(dim=1)

    def forward_tokens(self, images: Tensor) -> TokenOutput:
        """Class and token logits in either mode, without mixing and without adding one to the other."""
        return self._outputs(images, None)

    @torch.no_grad()
    def predict_tokens(self, images: Tensor) -> Tensor:
        """Class maps: what every token shows, as the model in eval mode sees it; no gradient, mode left as it was.

        Args:
            images: as for `forward`.

        Returns:
            float32 (batch, classes, rows, cols), probabilities over the classes: softmax of the token logits.

        Raises:
            ValueError: images of another size.
        """
        with eval_mode(self):
            output = self._outputs(images, None)
        maps = output.token_logits.float().softmax(dim=-1).transpose(1, 2)  # (batch, classes, tokens)
        return maps.reshape(*maps.shape[:2], *output.grid)

    def set_image_px(self, image_px: int) -> None:
        """Makes the model take images of another side; position embeddings are interpolated.

        Raises:
            ConfigError: a side that the model cannot take.
        """
        if image_px != self.image_px:
            raise ConfigError(f"this model takes images of {self.image_px} px only, not {image_px}")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass.

        Raises:
            ConfigError: the model cannot.
        """
        if enable:
            raise ConfigError(f"{type(self).__name__} has no blocks that could be computed again; leave it off")

    @property
    def level_count(self) -> int:
        """How many feature maps, from early to late, `forward_levels` can give.

        Raises:
            ConfigError: the model gives none.
        """
        raise ConfigError(
            f"{type(self).__name__} gives no feature maps (it has no forward_levels); a segmenter needs them"
        )

    def forward_levels(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Feature maps inside the network, for dense prediction: as they are, not normalised.

        Args:
            images: (batch, 3, height, width), normalised; both sides multiples of a token's, else free.
            blocks: numbers of the maps wanted, 1 to `level_count`, ascending.

        Returns:
            For each of them (batch, channels, rows, cols).

        Raises:
            ConfigError: the model gives none.
        """
        raise ConfigError(
            f"{type(self).__name__} gives no feature maps (it has no forward_levels); a segmenter needs them"
        )

    def keep_levels(self, count: int) -> None:
        """Drops what the first `count` feature maps do not need: later blocks, the final norm, both heads.

        Afterwards the model gives feature maps only, for images of any size where its network allows that, and every
        parameter that is left has a gradient.

        Raises:
            ConfigError: the model gives none.
        """
        raise ConfigError(
            f"{type(self).__name__} gives no feature maps (it has no forward_levels); a segmenter needs them"
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimiser factory keeps free of weight decay."""
        return {"pos_embed", "cls_token"}

    def adapt_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translates the names of a foreign checkpoint of this architecture to this model's; ours stay as they are."""
        return dict(state)

    def check_images(self, images: Tensor) -> None:
        """Refuses images of another shape than (batch, 3, image_px, image_px) with a ValueError."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_px, self.image_px):
            raise ValueError(
                f"images (batch, channels, height, width) are {tuple(images.shape)}; this model takes (batch, 3, "
                f"{self.image_px}, {self.image_px}): three channels (RGB), resized or with set_image_px for another side"
            )

    def _outputs(self, images: Tensor, mix: MixBox | None) -> TokenOutput:
        self.check_images(images)
        if mix is not None and mix.grid != self.grid:
            raise ValueError(f"MixBox (rows, cols) is on a grid {mix.grid}; this model's tokens form {self.grid}")
        class_logits, token_logits = self.encode(images, mix)
        if mix is not None:
            # Position t of sequence b held the partner's token where the box is; so its logit belongs to the partner.
            token_logits = mix_tokens(token_logits, mix)
        return TokenOutput(class_logits, token_logits, self.grid)
