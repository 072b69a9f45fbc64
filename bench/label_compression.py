"""What a stored map costs and what it keeps: layouts, k, quantised scores and vocabularies on real maps, bytes against fidelity.

usage: python bench/label_compression.py [--all] [--maps 40] [--photographs FILE.tar] [--judged 6] [--crops 2] [--record]
the table in the docs: --all --maps 160 --photographs camvid.tar --judged 20 --crops 4 (10 minutes)

Every variant is encoded to bytes and decoded from them. Bytes are one zlib stream an image, level 4, over byte planes, flushed
between planes so that each has Huffman tables of its own (plain: not flushed); nothing of HDF5. Fidelity is that of
label_fidelity.py, same photographs and crops. `left` is KL(label of all logits || label of the variant) in thousandths of a
nat: what storing costs, without what cropping costs. `+-` is the standard error of the KL's difference to plain's, paired by
photograph. The first run computes maps (0.2 s each), which are kept beside those of label_fidelity.
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_fidelity import (
    CACHE,
    CLASSES,
    GRID,
    STORED,
    WHOLE,
    AnnotatorMaps,
    all_logits_label,
    compare,
    cut_photographs,
    label_of,
    normalised,
    random_box,
    squashed,
    stored_map,
)
from numpy.typing import NDArray
from record import ResultLines
from torch import Tensor

from tokenlabel.core.seeds import derived_seed
from tokenlabel.data.images import decode_image
from tokenlabel.demo.photographs import LARGEST, SMALLEST, TRAIN_CROPS, VAL_CROPS, find_photographs
from tokenlabel.labels.geometry import sampling_weights

Array = NDArray[Any]
LEVEL = 4
PLAIN = "plain: float16, k 5, cell by cell"
RAW_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "pb": 0}]


@dataclass(frozen=True)
class Cells:
    """What a store gives back: (cells, k) float32 scores and int64 classes, bool which of them count, (cells,) tail."""

    scores: Array
    classes: Array
    used: Array
    tail: Array


@dataclass(frozen=True)
class Variant:
    """One way to store a map.

    Attributes:
        k: classes per cell; with `mass` the most.
        mass: keep the fewest classes of a cell that hold this probability; None: always k.
        scores: name in SCORE_CODECS.
        vocabulary: distinct classes once an image, as ascending gaps, and an index per entry.
        flush: a Huffman table per byte plane.
    """

    k: int = STORED
    mass: float | None = None
    scores: str = "float16"
    vocabulary: bool = False
    flush: bool = True


# Scores: (cells, k) float32 best first, and the tail (cells,), to arrays and back. k-major arrays hold differences along k.


def bits(values: Array) -> Array:
    return values.astype(np.float16).view(np.uint16)


def differences(values: Array) -> Array:
    """(cells, k) unsigned to (k, cells), each less the one before, wrapping around: exact for any bits."""
    columns = np.ascontiguousarray(values.T)
    columns[1:] -= columns[:-1].copy()
    return columns


def summed(columns: Array) -> Array:
    return np.add.accumulate(columns, axis=0, dtype=columns.dtype).T


def encode_float16(scores: Array, tail: Array) -> list[Array]:
    return [bits(scores), bits(tail)]


def decode_float16(arrays: list[Array]) -> tuple[Array, Array]:
    return arrays[0].view(np.float16).astype(np.float32), arrays[1].view(np.float16).astype(np.float32)


def encode_differences(scores: Array, tail: Array) -> list[Array]:
    return [differences(bits(scores)), bits(tail)]


def decode_differences(arrays: list[Array]) -> tuple[Array, Array]:
    return decode_float16([np.ascontiguousarray(summed(arrays[0])), arrays[1]])


def rounded(step: float) -> tuple[Callable[..., list[Array]], Callable[..., tuple[Array, Array]]]:
    """float16 differences of scores that the writer rounded to multiples of a step: the reader does not change."""

    def encode(scores: Array, tail: Array) -> list[Array]:
        return encode_differences(np.round(scores / step) * step, np.round(tail / step) * step)

    return encode, decode_differences


def stepped(step: float) -> tuple[Callable[..., list[Array]], Callable[..., tuple[Array, Array]]]:
    """Whole multiples of a step, 16 bits, as differences along k; the tail as difference to the last score."""

    def encode(scores: Array, tail: Array) -> list[Array]:
        levels = np.round(np.column_stack([scores, tail]) / step).astype(np.int16).view(np.uint16)
        return [differences(levels)]

    def decode(arrays: list[Array]) -> tuple[Array, Array]:
        values = np.ascontiguousarray(summed(arrays[0])).view(np.int16) * np.float32(step)
        return values[:, :-1], values[:, -1]

    return encode, decode


def eight_bits(dtype: torch.dtype) -> tuple[Callable[..., list[Array]], Callable[..., tuple[Array, Array]]]:
    """An 8-bit float, as differences of bit patterns along k."""

    def pattern(values: Array) -> Array:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).view(torch.uint8).numpy().copy()

    def value(patterns: Array) -> Array:
        return torch.from_numpy(np.ascontiguousarray(patterns)).view(dtype).float().numpy()

    def encode(scores: Array, tail: Array) -> list[Array]:
        return [differences(pattern(scores)), pattern(tail)]

    def decode(arrays: list[Array]) -> tuple[Array, Array]:
        return value(summed(arrays[0])), value(arrays[1])

    return encode, decode


def encode_linear_image(scores: Array, tail: Array) -> list[Array]:
    """256 levels between the image's lowest and highest score (tail included)."""
    values = np.column_stack([scores, tail])
    low, high = np.float32(values.min()), np.float32(values.max())
    levels = np.round((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return [np.array([low, high], np.float32), differences(levels)]


def decode_linear_image(arrays: list[Array]) -> tuple[Array, Array]:
    (low, high), levels = arrays
    values = summed(levels) * ((high - low) / np.float32(255)) + low
    return values[:, :-1], values[:, -1]


def encode_linear_cell(scores: Array, tail: Array) -> list[Array]:
    """Best and worst score of a cell in float16, 256 levels between them; tail in float16."""
    ends = scores[:, [0, -1]].astype(np.float16)
    best, worst = ends.astype(np.float32).T
    spread = np.maximum(best - worst, 1e-6)
    levels = np.round((best[:, None] - scores[:, 1:-1]) * (255 / spread[:, None])).clip(0, 255).astype(np.uint8)
    return [ends.view(np.uint16), np.ascontiguousarray(levels.T), bits(tail)]


def decode_linear_cell(arrays: list[Array]) -> tuple[Array, Array]:
    best, worst = arrays[0].view(np.float16).astype(np.float32).T
    middle = best[:, None] - arrays[1].T * ((best - worst)[:, None] / np.float32(255))
    return np.column_stack([best, middle, worst]), arrays[2].view(np.float16).astype(np.float32)


SCORE_CODECS: dict[str, tuple[Callable[..., list[Array]], Callable[..., tuple[Array, Array]]]] = {
    "float16": (encode_float16, decode_float16),
    "differences": (encode_differences, decode_differences),
    "rounded 1/32": rounded(1 / 32),
    "rounded 1/16": rounded(1 / 16),
    "rounded 1/8": rounded(1 / 8),
    "rounded 1/4": rounded(1 / 4),
    "rounded 1/2": rounded(1 / 2),
    "steps 1/32": stepped(1 / 32),
    "steps 1/16": stepped(1 / 16),
    "steps 1/8": stepped(1 / 8),
    "steps 1/4": stepped(1 / 4),
    "steps 1/2": stepped(1 / 2),
    "e4m3": eight_bits(torch.float8_e4m3fn),
    "e5m2": eight_bits(torch.float8_e5m2),
    "linear image": (encode_linear_image, decode_linear_image),
    "linear cell": (encode_linear_cell, decode_linear_cell),
}

VARIANTS: dict[str, Variant] = {
    PLAIN: Variant(flush=False),
    "plain, Huffman tables per plane": Variant(),
    "+ differences along k": Variant(scores="differences"),
    "+ vocabulary (format 1, compact)": Variant(scores="differences", vocabulary=True),
    "format 1, k 3": Variant(k=3, scores="differences", vocabulary=True),
    "format 1, k 8": Variant(k=8, scores="differences", vocabulary=True),
    "format 1, k 10": Variant(k=10, scores="differences", vocabulary=True),
    "mass 0.8, at most 10": Variant(k=10, mass=0.8, scores="differences", vocabulary=True),
    "mass 0.9, at most 10": Variant(k=10, mass=0.9, scores="differences", vocabulary=True),
    "format 1, score_step 1/32": Variant(scores="rounded 1/32", vocabulary=True),
    "format 1, score_step 1/16": Variant(scores="rounded 1/16", vocabulary=True),
    "format 1, score_step 1/8": Variant(scores="rounded 1/8", vocabulary=True),
    "format 1, score_step 1/4": Variant(scores="rounded 1/4", vocabulary=True),
    "format 1, score_step 1/2": Variant(scores="rounded 1/2", vocabulary=True),
    "format 1, score_step 1/4, k 8": Variant(k=8, scores="rounded 1/4", vocabulary=True),
    "steps of 1/32": Variant(scores="steps 1/32", vocabulary=True),
    "steps of 1/16": Variant(scores="steps 1/16", vocabulary=True),
    "steps of 1/8": Variant(scores="steps 1/8", vocabulary=True),
    "steps of 1/4": Variant(scores="steps 1/4", vocabulary=True),
    "steps of 1/2": Variant(scores="steps 1/2", vocabulary=True),
    "fp8 e4m3": Variant(scores="e4m3", vocabulary=True),
    "fp8 e5m2": Variant(scores="e5m2", vocabulary=True),
    "8 bit, per image": Variant(scores="linear image", vocabulary=True),
    "8 bit, per cell": Variant(scores="linear cell", vocabulary=True),
    "fp8 e4m3, k 8": Variant(k=8, scores="e4m3", vocabulary=True),
    "fp8 e4m3, k 10": Variant(k=10, scores="e4m3", vocabulary=True),
    "steps of 1/4, k 8": Variant(k=8, scores="steps 1/4", vocabulary=True),
    "steps of 1/2, k 8": Variant(k=8, scores="steps 1/2", vocabulary=True),
    "steps of 1/8, k 8": Variant(k=8, scores="steps 1/8", vocabulary=True),
    "steps of 1/8, k 10": Variant(k=10, scores="steps 1/8", vocabulary=True),
    "steps of 1/8, mass 0.8, at most 10": Variant(k=10, mass=0.8, scores="steps 1/8", vocabulary=True),
    "steps of 1/8, mass 0.9, at most 10": Variant(k=10, mass=0.9, scores="steps 1/8", vocabulary=True),
    "steps of 1/8, mass 0.9, at most 20": Variant(k=20, mass=0.9, scores="steps 1/8", vocabulary=True),
}
SHORT = (
    "plain, Huffman tables per plane",
    "+ vocabulary (format 1, compact)",
    "format 1, k 8",
    "format 1, score_step 1/16",
    "steps of 1/8, k 8",
    "fp8 e4m3",
)


def chosen(logits: Tensor, variant: Variant) -> Cells:
    """The classes to keep of each cell, unquantised, and the log mass of the rest."""
    flat = logits.flatten(0, 1)
    scores, classes = flat.topk(variant.k, dim=-1)
    used = torch.ones_like(scores, dtype=torch.bool)
    if variant.mass is not None:
        shares = flat.log_softmax(-1).gather(-1, classes).exp()
        used = shares.cumsum(-1) - shares < variant.mass  # what is missing before this one
        scores = torch.where(used, scores, scores.gather(-1, used.sum(-1, keepdim=True) - 1))  # the last repeats
    rest = torch.where(used, torch.tensor(float("-inf")), flat.gather(-1, classes))
    tail = flat.scatter(-1, classes, rest).logsumexp(-1)
    return Cells(scores.numpy(), classes.numpy(), used.numpy(), tail.numpy())


def encode(cells: Cells, variant: Variant) -> list[Array]:
    """Arrays to store; entries that do not count take room nowhere but in the count of their cell."""
    arrays = SCORE_CODECS[variant.scores][0](cells.scores, cells.tail)
    classes = cells.classes[cells.used].astype(np.uint16)
    if variant.mass is not None:
        arrays.append(cells.used.sum(-1).astype(np.uint8))
    if variant.vocabulary:
        words, index = np.unique(classes, return_inverse=True)
        gaps = words.copy()
        gaps[1:] -= words[:-1]
        return [*arrays, gaps, index.astype(np.uint16)]
    return [*arrays, classes]


def decode(arrays: list[Array], variant: Variant) -> Cells:
    """The reverse of `encode`."""
    arrays = list(arrays)
    classes = arrays.pop()
    if variant.vocabulary:
        classes = np.add.accumulate(arrays.pop(), dtype=np.uint16)[classes]
    counts = arrays.pop() if variant.mass is not None else None
    scores, tail = SCORE_CODECS[variant.scores][1](arrays)
    used = np.arange(variant.k) < (np.full(len(tail), variant.k) if counts is None else counts)[:, None]
    full = np.zeros(used.shape, np.int64)
    full[used] = classes
    return Cells(scores, full, used, tail)


def planes(array: Array) -> list[bytes]:
    """First all low bytes, then all high bytes."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return [plane.tobytes() for plane in flat.view(np.uint8).reshape(len(flat), array.itemsize).T]


def deflate(arrays: list[Array], flush: bool) -> bytes:
    packer = zlib.compressobj(LEVEL)
    pieces = []
    for plane in (plane for array in arrays for plane in planes(array)):
        if flush and pieces:
            pieces.append(packer.flush(zlib.Z_PARTIAL_FLUSH))
        pieces.append(packer.compress(plane))
    return b"".join([*pieces, packer.flush()])


def inflate(stored: bytes, shapes: list[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[Array]:
    """Arrays again; their shapes stand for the few bytes of header that a format would need."""
    content, start, arrays = np.frombuffer(zlib.decompress(stored), np.uint8), 0, []
    for shape, dtype in shapes:
        count, width = int(np.prod(shape)), dtype.itemsize
        piece = content[start : start + count * width].reshape(width, count)
        woven = np.empty((count, width), np.uint8)
        for byte in range(width):
            woven[:, byte] = piece[byte]
        arrays.append(woven.view(dtype).reshape(shape))
        start += count * width
    return arrays


def cell_values(cells: Cells, exact: bool) -> Tensor:
    """(cells, classes): probabilities with the tail spread evenly, or logits with zeros where nothing is stored."""
    scores, classes = torch.from_numpy(np.ascontiguousarray(cells.scores)), torch.from_numpy(cells.classes)
    used = torch.from_numpy(cells.used)
    if not exact:
        filled = torch.zeros(len(scores), CLASSES)
        return filled.scatter_add_(1, classes, torch.where(used, scores, torch.zeros(())))
    tail = torch.from_numpy(np.ascontiguousarray(cells.tail))
    kept = torch.where(used, scores, torch.tensor(float("-inf")))
    total = torch.logaddexp(kept.logsumexp(-1), tail)
    other = (tail - total).exp() / (CLASSES - used.sum(-1))
    above = torch.where(used, (kept - total[:, None]).exp() - other[:, None], torch.zeros(()))
    return other[:, None].expand(-1, CLASSES).clone().scatter_add_(1, classes, above)


def label(values: Tensor, weights: Tensor, exact: bool) -> Tensor:
    """(tokens, classes) of a crop, from `cell_values`."""
    aligned = weights @ values
    return aligned if exact else aligned.softmax(-1)


@dataclass
class Crop:
    """A crop to judge by: its weights on the map, the annotator's own label, and the label of all stored logits."""

    photograph: int
    weights: Tensor
    truth: Tensor
    full: Tensor


def crops_of(maps: AnnotatorMaps, photographs: int, crops: int) -> tuple[list[Tensor], list[Crop]]:
    """Maps of the demo's cut photographs, and their crops."""
    whole, found = [], []
    for index, (name, picture) in enumerate(cut_photographs(photographs)):
        logits = maps.logits(squashed(picture))
        whole.append(logits)
        for number in range(crops):
            pixels = random_box(name, number, picture)
            box = normalised(pixels, picture)
            truth = all_logits_label(maps.logits(squashed(picture.crop(pixels))), WHOLE)
            weights = sampling_weights(box, GRID, tuple(logits.shape[:2]))[0]  # type: ignore[arg-type]
            found.append(Crop(index, weights, truth, all_logits_label(logits, box)))
    return whole, found


def check_against_package(logits: Tensor, crop: Crop, box: Tensor) -> None:
    """The arithmetic here is the package's: fails where it is not."""
    cells = chosen(logits, VARIANTS[PLAIN])
    decoded = decode(encode(cells, VARIANTS[PLAIN]), VARIANTS[PLAIN])
    for exact in (False, True):
        ours = label(cell_values(decoded, exact), crop.weights, exact)
        torch.testing.assert_close(ours, label_of(stored_map(logits), box, exact), rtol=1e-4, atol=1e-6)


def real_maps(maps: AnnotatorMaps, count: int, archive: Path | None) -> list[Tensor]:
    """Maps of crops of the demo's photographs, then of the pictures of a tar file."""
    found: list[Tensor] = []
    for number in range(TRAIN_CROPS + VAL_CROPS):
        for _, path in find_photographs():
            if len(found) < count:
                picture = decode_image(path.read_bytes())
                rng = np.random.default_rng(derived_seed("compression", path.name, number))
                width, height = (round(side * rng.uniform(SMALLEST, LARGEST)) for side in picture.size)
                left, top = rng.integers(0, picture.width - width), rng.integers(0, picture.height - height)
                square = squashed(picture.crop((int(left), int(top), int(left) + width, int(top) + height)))
                found.append(maps.logits(square))
    if archive is not None:
        with tarfile.open(archive) as tar:
            names = [m for m in tar if m.isfile() and "images" in m.name and m.name.endswith((".png", ".jpg", ".jpeg"))]
            for member in names[:: max(1, len(names) // 80)][:80]:
                file = tar.extractfile(member)
                assert file is not None, "a member that is a file has content"
                found.append(maps.logits(squashed(decode_image(file.read()))))
    return found


def measure(variant: Variant, maps: list[Tensor], whole: list[Tensor], crops: list[Crop]) -> dict[str, Any]:
    """Bytes, seconds and fidelity of a variant."""
    sizes, floors, written, read = [], [], [], []
    for logits in maps:
        cells = chosen(logits, variant)
        started = time.perf_counter()
        arrays = encode(cells, variant)
        stored = deflate(arrays, variant.flush)
        written.append(time.perf_counter() - started)
        shapes = [(array.shape, array.dtype) for array in arrays]
        started = time.perf_counter()
        decoded = decode(inflate(stored, shapes), variant)
        read.append(time.perf_counter() - started)
        assert (decoded.classes[decoded.used] == cells.classes[cells.used]).all()
        tail_size = len(stored) - len(deflate(without_tail(arrays, variant), variant.flush))
        sizes.append((len(stored), len(stored) - tail_size))
        floors.append(
            len(lzma.compress(b"".join(b"".join(planes(a)) for a in arrays), lzma.FORMAT_RAW, filters=RAW_LZMA))
        )
    result: dict[str, Any] = {
        "bytes_with_tail": statistics.fmean(size for size, _ in sizes),
        "bytes": statistics.fmean(size for _, size in sizes),
        "lzma_with_tail": statistics.fmean(floors),
        "write_s": statistics.median(written),
        "read_s": statistics.median(read),
    }
    for exact in (True, False):
        values = [cell_values(decode(encode(chosen(m, variant), variant), variant), exact) for m in whole]
        scores = np.zeros((len(whole), 4))
        for crop in crops:
            found = label(values[crop.photograph], crop.weights, exact)
            scores[crop.photograph] += (*compare(found, crop.truth), compare(found, crop.full)[2])
        scores /= len(crops) / len(whole)
        mass = "exact" if exact else "published"
        for name, column in zip(("cosine", "top1", "kl", "left"), scores.mean(0), strict=True):
            result[f"{name}_{mass}"] = float(column)
        result[f"_kl_{mass}"] = scores[:, 2]
    return result


def without_tail(arrays: list[Array], variant: Variant) -> list[Array]:
    """The arrays of a shard without the tail: its own array, or the last column of the scores'."""
    arrays = list(arrays)
    if variant.scores.startswith("steps"):
        arrays[0] = arrays[0][:-1]
    elif variant.scores == "linear image":
        arrays[1] = arrays[1][:-1]
    else:
        del arrays[2 if variant.scores == "linear cell" else 1]
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help=f"all variants (default: {', '.join(SHORT)})")
    parser.add_argument("--maps", type=int, default=40, help="of the demo, for bytes and times (default: %(default)s)")
    parser.add_argument("--photographs", type=Path, help="tar file: 80 of its pictures are added to the maps")
    parser.add_argument("--judged", type=int, default=6, help="photographs for fidelity (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=2, help="of each, for fidelity (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=SHORT, choices=list(VARIANTS), help="these and the plain one")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the annotator's maps are kept")
    parser.add_argument("--record", action="store_true", help="write bench/results/label_compression.jsonl")
    args = parser.parse_args()
    source = AnnotatorMaps(args.cache)
    whole, crops = crops_of(source, args.judged, args.crops)
    name, picture = cut_photographs(1)[0]
    check_against_package(whole[0], crops[0], normalised(random_box(name, 0, picture), picture))
    maps = real_maps(source, args.maps, args.photographs)
    lines = ResultLines("label_compression", fresh=True) if args.record else None
    print(f"bytes and times: {len(maps)} maps; fidelity: {len(whole)} photographs x {args.crops} crops; Lite0")
    print(f"{'':35s} {'':27s}{'times of plain':>12s} | {'label_mass exact':^30s} | {'published mass':^22s}")
    heads = f"{'cosine':>7s} {'KL':>7s} {'left':>6s}"
    print(
        f"{'stored':35s} {'bytes':>6s} {'+ tail':>6s} {'lzma':>6s} {'write':>6s} {'read':>6s} | {heads} {'+-':>7s} | {heads}"
    )
    base: dict[str, Any] = {}
    for name in [name for name in VARIANTS if args.all or name in args.only or name == PLAIN]:
        found = measure(VARIANTS[name], maps, whole, crops)
        base = base or found
        write, read = found["write_s"] / base["write_s"], found["read_s"] / base["read_s"]
        gap = found["_kl_exact"] - base["_kl_exact"]  # paired by photograph
        error = gap.std(ddof=1) / len(gap) ** 0.5 if len(gap) > 1 else float("nan")
        sizes = " ".join(f"{found[key]:6.0f}" for key in ("bytes", "bytes_with_tail", "lzma_with_tail"))
        exact, published = (
            f"{found[f'cosine_{mass}']:7.4f} {found[f'kl_{mass}']:7.4f} {found[f'left_{mass}'] * 1e3:6.1f}"
            for mass in ("exact", "published")
        )
        print(f"{name:35s} {sizes} {write:6.2f} {read:6.2f} | {exact} {error:7.4f} | {published}", flush=True)
        if lines:
            shown = {key: value for key, value in found.items() if not key.startswith("_") and not key.endswith("_s")}
            lines.add(stored=name, maps=len(maps), write_ratio=write, read_ratio=read, kl_gap_se=float(error), **shown)


if __name__ == "__main__":
    main()
