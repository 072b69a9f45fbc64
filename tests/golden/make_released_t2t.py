"""Makes released_t2t.npz: what the T2T authors' model itself answers, for the tests of ours.

usage: python tests/golden/make_released_t2t.py FOLDER     (FOLDER: a checkout of yitu-opensource/T2T-ViT, with models/)

Run once, by hand. As for LV-ViT (make_released_lvvit.py) only the answers are kept. Eval mode, because their dropout
draws at random in training; attention scaled by 1 / sqrt(width), as their pretrained models have it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import torch

LVVIT = runpy.run_path(str(Path(__file__).with_name("make_released_lvvit.py")))
SIDE_PX, CLASSES, WIDTH, DEPTH, HEADS, MLP_RATIO = 64, 7, 48, 3, 4, 3.0


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from models.t2t_vit import T2T_ViT

    answers = {}
    for token_module in ("performer", "transformer"):
        model = T2T_ViT(
            img_size=SIDE_PX, tokens_type=token_module, num_classes=CLASSES, embed_dim=WIDTH, depth=DEPTH,
            num_heads=HEADS, mlp_ratio=MLP_RATIO, qk_scale=WIDTH**-0.5,
        )  # fmt: skip
        state = model.state_dict()
        drawn = LVVIT["released_weights"]({name: tuple(value.shape) for name, value in state.items()})
        model.load_state_dict({**drawn, "pos_embed": state["pos_embed"]})
        with torch.no_grad():
            answers[token_module] = model.eval()(LVVIT["released_images"]()).numpy()
    np.savez_compressed(Path(__file__).with_name("released_t2t.npz"), **answers)


if __name__ == "__main__":
    main()
