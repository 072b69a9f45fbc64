"""Makes released_lvvit.npz: what the released LV-ViT itself answers, weights included, for the tests of our model.

usage: python tests/golden/make_released_lvvit.py FOLDER     (FOLDER: an unpacked tlt 0.2.0, the one that holds tlt/)

Run once, by hand; tlt is no dependency of ours. Only the answers are kept: images and weights are drawn again from
their seeds by `released_images` and `released_weights`, which the tests take from here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SIDE_PX, BATCH, CLASSES, WIDTH, DEPTH, HEADS, MLP_RATIO = 64, 3, 7, 48, 3, 4, 3.0
BOX = (1, 0, 3, 3)  # first row, first column, row and column after the last: the order of the released code
# name of the case: the released code's stem (4_2: 64 channels, 4_2_128: 128) and residual scale
CASES = {"tiny": ("4_2", 1.0), "small": ("4_2", 2.0), "large": ("4_2_128", 3.0)}


def released_images() -> Tensor:
    """Float (batch, 3, side, side)."""
    return torch.from_numpy(np.random.default_rng(0).normal(size=(BATCH, 3, SIDE_PX, SIDE_PX))).float()


def released_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights and batch statistics as far from their starting values as after a training; the same for equal shapes."""
    state: dict[str, Tensor] = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        rng = np.random.default_rng(index)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(100)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = torch.from_numpy(rng.uniform(0.5, 1.5, shape)).float()
        else:
            fan_in = int(np.prod(shape[1:])) if len(shape) in (2, 4) else 10
            state[name] = torch.from_numpy(rng.normal(0, fan_in**-0.5, shape)).float()
    return state


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    np.int = int  # noqa: NPY001  the released code is older than numpy 1.24
    importlib.import_module("tlt.models")
    released = sys.modules["tlt.models.lvvit"]  # the package gives a function this name

    images = released_images()
    released.rand_bbox = lambda _size, _lam: BOX
    answers: dict[str, np.ndarray] = {}
    for name, (stem, scale) in CASES.items():
        model: nn.Module = released.LV_ViT(
            img_size=SIDE_PX, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=MLP_RATIO, num_classes=CLASSES,
            p_emb=stem, skip_lam=scale, return_dense=True, mix_token=True,
        )  # fmt: skip
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(released_weights(shapes))
        with torch.no_grad():
            answers[f"{name}_eval"] = model.eval()(images).numpy()
            class_logits, token_logits, box = model.train()(images)
        assert tuple(box) == BOX
        answers[f"{name}_class"], answers[f"{name}_tokens"] = class_logits.numpy(), token_logits.numpy()
    np.savez_compressed(Path(__file__).with_name("released_lvvit.npz"), **answers)


if __name__ == "__main__":
    main()
