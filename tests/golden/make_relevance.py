"""Makes relevance.npz: the relevance maps that the method's authors' own code gives, for the test of ours.

usage: python tests/golden/make_relevance.py FOLDER     (FOLDER: a checkout of hila-chefer/Transformer-Explainability)

Run once, by hand, with baselines/ViT/ViT_LRP.py of commit f9cdd27 and modules/layers_ours.py of d524286 (it needs einops,
which is no dependency of ours). Weights and images come from seeds, so only the maps are kept. Their code runs in float64
with 1e-15 instead of their 1e-9 in quotients. As published, their maps differ from these by up to (of a map's largest value)
small: 2e-5 in float64, 1e-3 in float32; DeiT-T, twelve random blocks: 1.3e-3 in float64, more than all of it in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES, IMAGES = 10, 2
ASKED = torch.tensor([[1, 4], [9, 0]])  # classes of each image
# name -> arguments of their VisionTransformer, epsilon of its norms
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "small": ({"img_size": 96, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 3.0, "qkv_bias": False}, 1e-5),
    "deit_tiny": ({"img_size": 224, "embed_dim": 192, "depth": 12, "num_heads": 3, "qkv_bias": True}, 1e-6),
}


def draw_weights(module: nn.Module) -> None:
    """Draws weights by their names, large enough that attention is far from uniform."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(sum(name.encode())))
        if name.endswith("weight") and "norm" not in name:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:  # norms, biases, class token, positions
            parameter.data = noise / 10 + ("norm" in name and name.endswith("weight"))


def draw_images(image_px: int) -> Tensor:
    """(IMAGES, 3, image_px, image_px)."""
    return torch.randn(IMAGES, 3, image_px, image_px, generator=torch.Generator().manual_seed(2))


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / (denominator + 1e-15) * (denominator != 0)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from baselines.ViT.ViT_LRP import VisionTransformer
    from modules import layers_ours

    layers_ours.safe_divide = _divide
    maps = {}
    for name, (arguments, epsilon) in MODELS.items():
        model = VisionTransformer(num_classes=CLASSES, **arguments)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = epsilon
        draw_weights(model)
        model.double().eval()
        found = []
        for image, asked in zip(draw_images(arguments["img_size"]).double(), ASKED, strict=True):
            for index in asked.tolist():
                one_hot = nn.functional.one_hot(torch.tensor([index]), CLASSES).double()
                (model(image[None]) * one_hot).sum().backward()
                found.append(model.relprop(one_hot, method="transformer_attribution", alpha=1).detach()[0])
        side = arguments["img_size"] // 16
        maps[name] = torch.stack(found).reshape(*ASKED.shape, side, side).float().numpy()
    np.savez_compressed(Path(__file__).with_name("relevance.npz"), **maps)


if __name__ == "__main__":
    main()
