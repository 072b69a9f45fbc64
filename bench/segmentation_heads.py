"""What a segmentation head adds to its backbone: parameters, multiply-adds of an image and the time of a training step.

usage: python bench/segmentation_heads.py [--repeats 3] [--batch 1] [--precision float32] [--threads 1] [--record]

The segmenters of Tables 5 and 6 as config.yaml plans them: its heads, crops of 512 px and ADE20K's 150 classes. Sizes are counted
from the code. Times are LV-ViT-S's, a step being forward and backward of both losses on random pixels. The whole segmenter and its
backbone alone take turns; the share, of head and losses, is the median of the pairs, in processor seconds. `positions` is the
interpolation of the position embedding, as a share of the backbone's forward pass. `loss` is what the loss of one head adds to a
process's largest resident memory, forward and backward, each number of photographs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counts import study
from record import ResultLines
from torch.nn import functional as F

from tokenlabel.core.paper import value
from tokenlabel.engine.device import autocast
from tokenlabel.models import (
    SegmentationModel,
    count_multiply_adds,
    count_parameters,
    create_model,
    create_segmenter,
)
from tokenlabel.models.transformer import interpolate_position_embedding
from tokenlabel.segment.losses import pixel_cross_entropy

ROWS = (
    "lvvit_s_fcn_token",
    "lvvit_s_upernet_token",
    "lvvit_m_upernet",
    "lvvit_l_upernet",
)  # of the study's segmentation


def specs() -> dict[str, dict[str, Any]]:
    """The spec of each row."""
    planned = {row.name: row.run.spec for row in study().segmentation_tables["segmentation"].rows}
    return {name: planned[name] for name in ROWS}


def segmenter(spec: dict[str, Any]) -> SegmentationModel:
    """The segmenter of a spec, as its training makes it."""
    backbone = create_model(spec["model"]["architecture"], 1, spec["image_px"], **spec["model"]["settings"])
    return create_segmenter(backbone, spec["head"], spec["dataset"]["num_classes"], crop_px=spec["recipe"]["crop_px"])


def size_row(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Parameters by part and multiply-adds of an image, in millions and 10^9."""
    crop_px, head = spec["recipe"]["crop_px"], spec["head"]
    with torch.device("meta"):
        model = segmenter(spec)
        classifier = create_model(spec["model"]["architecture"], 1, crop_px, **spec["model"]["settings"])
    backbone_m, auxiliary_m = (
        count_parameters(part) / 1e6 if part else 0.0 for part in (model.backbone, model.auxiliary)
    )
    printed = [value(table, name, "params_m") for table in ("5", "6")]
    total_m = count_parameters(model) / 1e6
    total_g, backbone_g = (count_multiply_adds(network.eval(), crop_px) / 1e9 for network in (model, classifier))
    return {
        "model": spec["model"]["architecture"], "head": head["kind"], "channels": head["channels"], "crop_px": crop_px,
        "total_m": total_m, "backbone_m": backbone_m, "head_m": total_m - backbone_m - auxiliary_m,
        "auxiliary_m": auxiliary_m, "paper_m": next(number.value for number in printed if number),
        "backbone_gmacs": backbone_g, "head_gmacs": total_g - backbone_g,
    }  # fmt: skip


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.process_time()  # which other jobs on the machine do not slow
    work()
    return time.process_time() - started


def step_row(spec: dict[str, Any], batch: int, repeats: int, precision: torch.dtype) -> dict[str, Any]:
    """Seconds of a step with the head and of the backbone alone."""
    torch.manual_seed(0)
    model, crop_px = segmenter(spec), spec["recipe"]["crop_px"]
    images = torch.randn(batch, 3, crop_px, crop_px)
    masks = torch.randint(model.num_classes, (batch, crop_px, crop_px))
    device = torch.device("cpu")

    def whole() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = model(images)
            loss = sum(
                F.cross_entropy(F.interpolate(found.float(), size=crop_px, mode="bilinear"), masks) for found in output
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
        "model": spec["model"]["architecture"], "head": spec["head"]["kind"], "batch": batch,
        "precision": str(precision).removeprefix("torch."),
        "step_s": statistics.median(pair[0] for pair in pairs), "backbone_s": statistics.median(pair[1] for pair in pairs),
        "share": statistics.median(1 - part / all_ for all_, part in pairs),
        "positions_share": positions / seconds_of(forward),
    }  # fmt: skip


def peak_bytes() -> int:
    """This process's largest resident memory; getrusage would give a parent's, whose figure a started process inherits."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def loss_bytes(photographs: int, classes: int, crop_px: int) -> int:
    """Bytes by which the loss of one head raises this process's largest resident memory."""
    pixel_cross_entropy(torch.zeros(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)).backward()
    logits = torch.randn(photographs, classes, crop_px // 8, crop_px // 8, requires_grad=True)
    masks = torch.randint(classes, (photographs, crop_px, crop_px))
    before = peak_bytes()
    pixel_cross_entropy(logits, masks).backward()
    return peak_bytes() - before


def loss_row(spec: dict[str, Any], photographs: int) -> dict[str, Any]:
    """Megabytes of the loss, measured where nothing was held before."""
    classes, crop_px = spec["dataset"]["num_classes"], spec["recipe"]["crop_px"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        size = pool.apply(loss_bytes, (photographs, classes, crop_px))
    return {"photographs": photographs, "classes": classes, "crop_px": crop_px, "loss_mb": size / 1e6}


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
    for name, spec in specs().items():
        row = size_row(name, spec)
        print("size", row)
        if lines:
            lines.add(kind="size", **row)
    for name in ROWS[:2]:
        row = step_row(specs()[name], args.batch, args.repeats, getattr(torch, args.precision))
        print("step", row)
        if lines:
            lines.add(kind="step", threads=args.threads, **row)
    for photographs in (1, 2, 4):
        row = loss_row(specs()[ROWS[0]], photographs)
        print("loss", row)
        if lines:
            lines.add(kind="loss", **row)


if __name__ == "__main__":
    main()
