"""What `WithView` costs a loader: photographs decoded and transformed, the transform alone and wrapped, in turn, by the same draws.

python bench/view_overhead.py --images 40 --repeats 5 [--record]
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import ResultLines
from timm.data import create_transform
from torchvision.transforms import v2

from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import WithView

PIPELINES: dict[str, Callable[[], Any]] = {
    "torchvision v2: crop, flip, RandAugment, normalise": lambda: v2.Compose([
        v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.RandAugment(), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3),
    ]),
    "torchvision v2: crop and flip only, uint8": lambda: v2.Compose([
        v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage()
    ]),
    "timm: rand-m9-mstd0.5-inc1, erasing": lambda: create_transform(
        224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25
    ),
    "timm: prefetched": lambda: create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", use_prefetcher=True),
}  # fmt: skip


def seconds_of(transform: Any, photographs: list[bytes], images: int) -> float:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  timm draws from it
    torch.manual_seed(0)
    started = time.perf_counter()
    for index in range(images):
        with Image.open(io.BytesIO(photographs[index % len(photographs)])) as opened:
            transform(opened.convert("RGB"))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="photographs per timing")
    parser.add_argument("--repeats", type=int, default=5, help="paired timings; the median ratio counts")
    parser.add_argument("--record", action="store_true", help="write bench/results/view_overhead.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    photographs = [path.read_bytes() for _, path in find_photographs()]
    lines = ResultLines("view_overhead", fresh=True) if args.record else None
    print(f"{'pipeline':54} {'alone ms':>9} {'wrapped ms':>11} {'ratio':>6}")
    for name, make in PIPELINES.items():
        alone, wrapped = make(), WithView(make())
        seconds_of(alone, photographs, 5)
        seconds_of(wrapped, photographs, 5)
        pairs = [
            (seconds_of(alone, photographs, args.images), seconds_of(wrapped, photographs, args.images))
            for _ in range(args.repeats)
        ]
        ratio = statistics.median(second / first for first, second in pairs)
        alone_ms, wrapped_ms = (1000 * statistics.median(column) / args.images for column in zip(*pairs, strict=True))
        print(f"{name:54} {alone_ms:9.2f} {wrapped_ms:11.2f} {ratio:6.3f}")
        if lines:
            lines.add(pipeline=name, alone_ms=alone_ms, wrapped_ms=wrapped_ms, ratio=ratio, images=args.images)


if __name__ == "__main__":
    main()
