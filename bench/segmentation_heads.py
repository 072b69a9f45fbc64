"""What a segmentation head adds to its backbone: parameters, multiply-adds of an image and the time of a training step.

usage: python bench/segmentation_heads.py [--repeats 3] [--batch 1] [--precision float32] [--threads 1] [--record]

The segmenters of Tables 5 and 6 with the heads of config.yaml on crops of 512 px and ADE20K's 150 classes; sizes are counted from
the code, at the size of images that the backbone's published weights have. Times are LV-ViT-S's, a step being forward and backward of
both losses on random pixels: the whole segmenter and its backbone alone take turns; the share is the median of the pairs, in
processor seconds. `positions` is the interpolation of the position embedding in a forward pass, as a share of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml
from record import ROOT, ResultLines
from torch import nn
from torch.nn import functional as F

from tokenlabel.core.config import load_config
from tokenlabel.core.paper import value
from tokenlabel.engine.device import autocast
from tokenlabel.models import count_multiply_adds, count_parameters, create_model, create_segmenter
from tokenlabel.models.transformer import interpolate_position_embedding

CLASSES, CROP_PX = 150, 512
SEGMENTERS = (  # architecture, head of config.yaml, what the row changes, its own image px, row of the paper
    ("lvvit_s", "fcn", {}, 512, ("5", "lvvit_s_fcn_token")),
    ("lvvit_s", "upernet", {}, 512, ("5", "lvvit_s_upernet_token")),
    ("lvvit_m", "upernet", {}, 512, ("6", "lvvit_m_upernet")),
    ("lvvit_l", "upernet", {"channels": 512}, 448, ("6", "lvvit_l_upernet")),
)


def heads() -> dict[str, dict[str, Any]]:
    """The heads of config.yaml as a spec has them."""
    config = load_config(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    return {name: head.as_spec() for name, head in config.segmentation.heads.items()}


def size_row(architecture: str, head: dict[str, Any], image_px: int, row: tuple[str, str]) -> dict[str, Any]:
    """Parameters by part and multiply-adds of an image, in millions and 10^9."""
    with torch.device("meta"):
        classifier = create_model(architecture, 1000, image_px)
        model = create_segmenter(create_model(architecture, 1000, image_px), head, CLASSES)
    backbone_m, auxiliary_m = (
        count_parameters(part) / 1e6 if part else 0.0 for part in (model.backbone, model.auxiliary)
    )
    total_m = count_parameters(model) / 1e6
    printed = value(*row, "params_m")
    assert printed is not None
    classifier.set_image_px(CROP_PX)
    backbone_g = (count_multiply_adds(classifier, CROP_PX) - heads_of_classifier(classifier)) / 1e9
    total_g = count_multiply_adds(model.eval(), CROP_PX) / 1e9
    return {
        "model": architecture, "head": head["kind"], "channels": head["channels"], "image_px": image_px,
        "total_m": total_m, "backbone_m": backbone_m, "auxiliary_m": auxiliary_m, "paper_m": printed.value,
        "head_m": total_m - backbone_m - auxiliary_m, "backbone_gmacs": backbone_g, "head_gmacs": total_g - backbone_g,
    }  # fmt: skip


def heads_of_classifier(model: nn.Module) -> int:
    """Multiply-adds of the class head and the token head, which a segmenter has not."""
    tokens, width = 1 + (CROP_PX // 16) ** 2, model.get_parameter("head.weight").shape[1]
    return tokens * width * 1000


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.process_time()  # which other jobs on the machine do not slow
    work()
    return time.process_time() - started


def step_row(head: dict[str, Any], batch: int, repeats: int, precision: torch.dtype) -> dict[str, Any]:
    """Seconds of a step of LV-ViT-S with a head and without."""
    torch.manual_seed(0)
    model = create_segmenter(create_model("lvvit_s"), head, CLASSES, crop_px=CROP_PX)
    images, masks = torch.randn(batch, 3, CROP_PX, CROP_PX), torch.randint(CLASSES, (batch, CROP_PX, CROP_PX))
    device = torch.device("cpu")

    def whole() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = model(images)
            loss = sum(
                F.cross_entropy(F.interpolate(found.float(), size=CROP_PX, mode="bilinear"), masks) for found in output
            )
        loss.backward()

    def backbone() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, precision):
            maps = model.levels.read(model.backbone, images)
        sum(found.float().sum() for found in maps).backward()

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            model.levels.read(model.backbone, images)

    state = {"pos_embed": create_model("lvvit_s").state_dict()["pos_embed"]}
    pairs = []
    for number in range(repeats + 1):
        first, second = (whole, backbone) if number % 2 else (backbone, whole)
        taken = {first: seconds_of(first), second: seconds_of(second)}
        pairs.append((taken[whole], taken[backbone]))
    pairs = pairs[1:]  # the first warms up
    positions = statistics.median(seconds_of(lambda: interpolate_position_embedding(state, (32, 32))) for _ in range(9))
    return {
        "head": head["kind"], "batch": batch, "precision": str(precision).removeprefix("torch."),
        "step_s": statistics.median(pair[0] for pair in pairs), "backbone_s": statistics.median(pair[1] for pair in pairs),
        "share": statistics.median(1 - part / all_ for all_, part in pairs),
        "positions_share": positions / seconds_of(forward),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="crops a step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of steps (default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/segmentation_heads.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ResultLines("segmentation_heads", fresh=True) if args.record else None
    described = heads()
    for architecture, head, changed, image_px, paper_row in SEGMENTERS:
        row = size_row(architecture, described[head] | changed, image_px, paper_row)
        print("size", row)
        if lines:
            lines.add(kind="size", **row)
    for head in described.values():
        row = step_row(head, args.batch, args.repeats, getattr(torch, args.precision))
        print("step", row)
        if lines:
            lines.add(kind="step", threads=args.threads, **row)


if __name__ == "__main__":
    main()
