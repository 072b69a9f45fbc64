"""Which tokens a vision transformer's answer for one class rests on: relevance maps, as the paper's Figs. 6 and 7 show.

Transformer attribution: the class logit's relevance goes back through the blocks; in each, the attention's relevance times
its gradient says what the tokens gave each other for this class, and the product over blocks what reached the class token.
The model runs itself, hooks record it, and what its attention gave is checked against the matrix computed here.
Called by `visualise_command`. LV-ViT, T2T-ViT and timm's plain vision transformers (ViT, DeiT) with a class token.
Source: Chefer, Gur and Wolf 2021, arXiv 2012.09838, section 3. Equal to the authors' code, which takes one image at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..models import TokenModel
from ..models.timm_backbones import TimmTokenModel
from ..models.transformer import TokenTransformer

STABILISER = 1e-15  # keeps a quotient finite where the parts of a sum cancel; the authors' 1e-9 is for float32
TOLERANCE = 1e-6  # of the largest value, between the model's own outputs and what is computed here
SUPPORTED = "LV-ViT, T2T-ViT, and timm's plain vision transformers (ViT, DeiT) that classify by their class token"

Recording = dict[nn.Module, tuple[Tensor, Tensor]]  # module -> what it was given, what it gave


@dataclass(frozen=True)
class _Encoder:
    """The parts of a transformer that relevance passes, and the leading tokens that are no patches."""

    blocks: Sequence[Any]
    norm: nn.Module
    head: nn.Linear
    prefix_tokens: int
    is_distilled: bool = False

    def modules(self) -> Iterator[nn.Module]:
        """What must be recorded."""
        yield self.norm
        for block in self.blocks:
            yield from (block, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.fc1, block.mlp.fc2)


def relevance_maps(model: TokenModel, images: Tensor, classes: Tensor) -> Tensor:
    """Relevance of each patch for the class token's logit of given classes.

    The token head's share of a class logit (half of the best token logit in LV-ViT) is left out: it comes from one token
    and would mark that token alone. Of a distilled DeiT the class token's head is explained, not the distillation token's.

    Args:
        model: one of `SUPPORTED`; left as it was.
        images: float (batch, 3, image_px, image_px), normalised.
        classes: int64 (batch, n), in [0, num_classes); each has a map of its own.

    Returns:
        float32 (batch, n, rows, cols), at least 0; only the ratios within one map mean something.

    Raises:
        ConfigError: the model is of another kind.
    """
    reason = why_unsupported(model)
    if reason is not None:
        raise ConfigError(f"no relevance maps of this model: {reason}. Expected {SUPPORTED}.")
    # A graph is needed even where the caller is in inference mode or has frozen the weights.
    with torch.inference_mode(False), torch.enable_grad():
        # Quotients by sums that cancel amplify rounding: in float32 a deep model's map depends on the machine. The copy
        # takes the hooks with it, and its mode.
        twin = copy.deepcopy(model).to("cpu" if images.device.type == "mps" else images.device, torch.float64).eval()
        twin.set_grad_checkpointing(False)  # the hooks want each activation, once
        encoder = _encoder_of(twin)
        seen = _record(encoder)
        output = twin.forward_tokens(images.detach().to(next(twin.parameters())).clone().requires_grad_())
        features = seen[encoder.norm][1][:, 0]  # (batch, width), the class token's
        logits = encoder.head(features)  # (batch, classes)
        if not encoder.is_distilled:
            _check_equal("class logits", logits, output.class_logits)
        mixed = [seen[block.attn.proj][0] for block in encoder.blocks]
        asked = classes.to(logits.device)
        gradients = [
            torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), mixed, retain_graph=True)
            for chosen in asked.unbind(1)
        ]
    with torch.no_grad():
        # One axis more than the model has: the classes, over which what was recorded is the same.
        seen = {module: (given[:, None], gave[:, None]) for module, (given, gave) in seen.items()}
        slopes = [torch.stack(of_classes, dim=1) for of_classes in zip(*gradients, strict=True)]
        one_hot = nn.functional.one_hot(asked, logits.shape[1]).to(logits)  # (batch, n, classes)
        row = _class_token_row(encoder, seen, one_hot, slopes)
    patches = row[..., encoder.prefix_tokens :].reshape(*classes.shape, *model.grid)
    return patches.to(images.device, torch.float32)


def why_unsupported(model: TokenModel) -> str | None:
    """What stands against relevance maps of this model, in words; None for nothing."""
    if isinstance(model, TokenTransformer):
        return None
    if not isinstance(model, TimmTokenModel):
        return f"it is a {type(model).__name__}"
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    backbone = model.backbone
    if not isinstance(backbone, VisionTransformer):
        return f"it is a {type(backbone).__name__}"
    if backbone.global_pool != "token":
        return f"it classifies by {backbone.global_pool!r} pooling"
    for block in backbone.blocks:
        parts = (type(block), type(block.attn), type(block.mlp))
        if parts != (Block, Attention, Mlp):
            return f"its blocks are made of {', '.join(part.__name__ for part in parts)}"
        # Newer variants norm or gate what attention or the feed-forward gave; no rule of the method covers that.
        if block.attn.gate is not None or not all(
            isinstance(part, nn.Identity) for part in (block.attn.q_norm, block.attn.norm, block.mlp.norm)
        ):
            return "its blocks have norms or gates inside"
    return None


def linear_rule(weight: Tensor, inputs: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of a linear layer's inputs: shared out in proportion to their positive contributions (section 3.1).

    Args:
        weight: (out, in). A bias has no input to give relevance to, and counts for nothing.
        inputs: (..., in).
        relevance: (..., out), of its outputs.
    """
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    above, below = inputs.clamp(min=0), inputs.clamp(max=0)
    quotient = _divide(relevance, above @ positive.t() + below @ negative.t())
    return above * (quotient @ positive) + below * (quotient @ negative)


def sum_rule(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the two parts of a sum: by their values, then each scaled so that an image's total is kept.

    Without the scaling parts of opposite sign would get large relevance of opposite sign (section 3.2).

    Args:
        first, second, relevance: (..., tokens, width).
    """
    quotient = _divide(relevance, first + second)
    parts = [part * quotient for part in (first, second)]
    totals = [part.sum(dim=(-2, -1), keepdim=True) for part in parts]
    kept = relevance.sum(dim=(-2, -1), keepdim=True) / (totals[0].abs() + totals[1].abs() + STABILISER)
    one, other = (part * total.sign() * kept for part, total in zip(parts, totals, strict=True))
    return one, other


def product_rule(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the two factors of a matrix product `first @ second`.

    By their values, which gives each factor the whole; the scaling of section 3.2 leaves a half to each.
    """
    quotient = _divide(relevance, first @ second) / 2
    return first * (quotient @ second.mT), second * (first.mT @ quotient)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is: what nothing contributed to has nobody to give its relevance to."""
    return numerator / (denominator + STABILISER) * (denominator != 0)


def _class_token_row(encoder: _Encoder, seen: Recording, one_hot: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """What each token gave the class token, over all blocks.

    Args:
        encoder: the transformer.
        seen: its recorded forward, each tensor (batch, 1, tokens, width).
        one_hot: (batch, n, classes), the relevance of the logits.
        slopes: of each block, the logits' gradients at the mixed values, (batch, n, tokens, width).

    Returns:
        (batch, n, tokens), the class token's row of the product over blocks (section 3.3).
    """
    features = seen[encoder.norm][1]
    relevance = one_hot.new_zeros(*one_hot.shape[:2], *features.shape[2:])  # (batch, n, tokens, width)
    relevance[..., 0, :] = linear_rule(encoder.head.weight, features[..., 0, :], one_hot)
    row = torch.zeros_like(relevance[..., 0])
    row[..., 0] = 1
    for block, slope in zip(reversed(encoder.blocks), reversed(slopes), strict=True):
        relevance, of_attention, gradient = _through_block(block, seen, relevance, slope)
        gain = (gradient * of_attention).clamp(min=0).mean(dim=2)  # (batch, n, tokens, tokens)
        row = row + (row[..., None, :] @ gain)[..., 0, :]  # times identity plus gain
    return row


def _through_block(block: Any, seen: Recording, relevance: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes relevance from a block's output to its input.

    GELU, softmax, norms and the scale of a residual branch act on single values or keep their share: identity.

    Returns:
        relevance of the input (batch, n, tokens, width); relevance and gradient of the attention (batch, n, heads,
        tokens, tokens).
    """
    tokens, output = seen[block]
    middle = seen[block.norm2][0]  # between attention and feed-forward
    skipped, branch = sum_rule(middle, output - middle, relevance)
    for layer in (block.mlp.fc2, block.mlp.fc1):
        branch = linear_rule(layer.weight, seen[layer][0], branch)

    skipped, branch = sum_rule(tokens, middle - tokens, skipped + branch)
    attention, query, key, value = _attend(block.attn, seen)
    heads = value.shape[2]
    mixed = linear_rule(block.attn.proj.weight, seen[block.attn.proj][0], branch)
    of_attention, of_value = product_rule(attention, value, _split_heads(mixed, heads))
    of_query, of_key = product_rule(query, key.mT, of_attention)
    of_qkv = torch.stack((of_query, of_key.mT, of_value), dim=2)  # (batch, n, 3, heads, tokens, width / heads)
    of_qkv = of_qkv.permute(0, 1, 4, 2, 3, 5).flatten(3)  # (batch, n, tokens, 3 * width)
    branch = linear_rule(block.attn.qkv.weight, seen[block.attn.qkv][0], of_qkv)
    return skipped + branch, of_attention, _split_heads(slope, heads) @ value.mT


def _attend(attn: Any, seen: Recording) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention matrix (batch, 1, heads, tokens, tokens); query, key and value (batch, 1, heads, tokens, width / heads)."""
    heads = attn.num_heads if hasattr(attn, "num_heads") else attn.heads
    query, key, value = (_split_heads(part, heads) for part in seen[attn.qkv][1].chunk(3, dim=-1))
    scale = attn.scale if attn.scale is not None else query.shape[-1] ** -0.5
    attention = (query @ key.mT * scale).softmax(dim=-1)
    _check_equal("attention's output", attention @ value, _split_heads(seen[attn.proj][0], heads))
    return attention, query, key, value


def _split_heads(values: Tensor, heads: int) -> Tensor:
    """(batch, n, tokens, width) -> (batch, n, heads, tokens, width / heads)."""
    return values.reshape(*values.shape[:3], heads, -1).transpose(2, 3)


def _encoder_of(model: TokenModel) -> _Encoder:
    if isinstance(model, TimmTokenModel):
        backbone = model.backbone
        return _Encoder(
            tuple(backbone.blocks),
            backbone.norm,
            backbone.head,
            backbone.num_prefix_tokens,
            is_distilled=hasattr(backbone, "head_dist"),
        )
    assert isinstance(model, TokenTransformer)
    return _Encoder(tuple(model.blocks), model.norm, model.head, prefix_tokens=1)


def _record(encoder: _Encoder) -> Recording:
    """A dictionary that fills while the model runs."""
    seen: Recording = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (inputs[0], output)

    for module in encoder.modules():
        module.register_forward_hook(record)
    return seen


def _check_equal(what: str, ours: Tensor, models: Tensor) -> None:
    difference = (ours - models).abs().max()
    assert difference <= TOLERANCE * models.abs().max(), f"{what}: {difference} from the model's own"
