"""Makes released_targets.npz: what the released code itself gives on small random maps, for the tests of its geometry.

usage: python tests/golden/make_released_targets.py FOLDER     (FOLDER: an unpacked tlt 0.2.0, the one with data/ and loss/)

Run once, by hand; tlt is no dependency of ours. Its file data/mixup.py is loaded alone and run on the CPU.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

CLASSES, SIDE, K, LABEL_SIZE, SMOOTHING = 40, 18, 5, 14, 0.1
# top, left, height, width of crops as shares of the photograph, as the released transform hands them on; mirrored or not
CROPS = [
    (0.0, 0.0, 1.0, 1.0, False),
    (0.0, 0.0, 0.5, 1.0, False),
    (0.11, 0.37, 0.42, 0.55, False),
    (0.11, 0.37, 0.42, 0.55, True),
    (0.6, 0.05, 0.33, 0.9, True),
    (0.93, 0.2, 0.04, 0.03, False),  # less than a cell: RoIAlign makes it one
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    released = load(Path(sys.argv[1]) / "data" / "mixup.py")
    rng = np.random.default_rng(0)
    shape = (len(CROPS), SIDE, SIDE, CLASSES)
    classes = rng.random(shape).argsort(-1)[..., :K].astype(np.uint8)
    scores = -np.sort(-rng.normal(4, 3, classes.shape), axis=-1).astype(np.float16)
    ground_truth = rng.integers(0, CLASSES, len(CROPS))
    # as the released loader has it: scores, classes, and a third layer that holds the crop and the label
    raw = torch.zeros(len(CROPS), 3, K, SIDE, SIDE)
    raw[:, 0] = torch.from_numpy(scores.astype(np.float32)).permute(0, 3, 1, 2)
    raw[:, 1] = torch.from_numpy(classes.astype(np.float32)).permute(0, 3, 1, 2)
    for image, (top, left, height, width, mirrored) in enumerate(CROPS):
        if mirrored:
            raw[image, :2] = raw[image, :2].flip(3)
        raw[image, 2, 0, 0, :4] = torch.tensor([top, left, height, width])
        raw[image, 2, 0, 0, 5] = int(ground_truth[image])
    arguments = {"num_classes": CLASSES, "device": "cpu", "label_size": LABEL_SIZE}
    plain = released.mixup_target(raw.clone(), **arguments)
    smooth = released.mixup_target(raw.clone(), smoothing=SMOOTHING, **arguments)
    mixed = released.mixup_target(raw.clone(), lam=0.3, smoothing=SMOOTHING, **arguments)
    # (batch, classes, 2 + tokens): the label, the pooled map, the tokens; a few tokens say as much as all
    kept = [0, 1, *range(2, 2 + LABEL_SIZE**2, 13)]
    np.savez_compressed(
        Path(__file__).with_name("released_targets.npz"),
        scores=scores, classes=classes, crops=np.array(CROPS, dtype=np.float32), ground_truth=ground_truth,
        kept=np.array(kept), plain=plain[..., kept].numpy(), smooth=smooth[..., kept].numpy(), mixed=mixed[..., kept].numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
