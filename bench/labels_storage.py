"""Label storage: random single-image reads, bytes and write time of our shards against other layouts, in one run.

usage: python bench/labels_storage.py [--maps 20] [--photographs FILE.tar] [--images 1000] [--reads 1000] [--repeats 5]
           [--record] [--figure PNG]
the table in the docs: --maps 160 --photographs camvid.tar --images 2000 --record --figure docs/figures/labels_storage.png

Layouts: one `.pt` file per image (the released code's), HDF5 with two data sets raw and with each filter, one packed record
per image without a checksum, and both storage profiles of the shard format, read by LabelStore and by plain h5py. Reads are
shuffled; every repeat goes through all layouts, so that ratios are paired. Maps are real: EfficientNet-Lite0 on
crops of the demo's photographs (and of a tar's), computed once and kept beside those of label_fidelity.
"""

from __future__ import annotations

import argparse
import io
import lzma
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from label_compression import real_maps
from label_fidelity import CACHE, AnnotatorMaps, stored_map
from record import ResultLines

from tokenlabel.core.files import sha256_of, write_json
from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabelStore
from tokenlabel.labels.records import LabelRows
from tokenlabel.labels.shards import ShardAttributes, assemble_parts, marker_path, shard_file_name, write_part

Reader = Callable[[int], Any]
try:
    import hdf5plugin  # zstd is no filter of plain HDF5; skipped where the plugin is not installed

    ZSTD: dict[str, Any] | None = dict(hdf5plugin.Zstd(clevel=3))
except ImportError:
    ZSTD = None

# name -> dataset options of the layout with two data sets
TWO_DATA_SETS: dict[str, dict[str, Any] | None] = {
    "HDF5, 2 data sets, raw": {},
    "HDF5, 2 data sets, lzf": {"shuffle": True, "compression": "lzf"},
    "HDF5, 2 data sets, gzip 4": {"shuffle": True, "compression": "gzip", "compression_opts": 4},
    "HDF5, 2 data sets, zstd 3": None if ZSTD is None else {"shuffle": True, **ZSTD},
}
PT, FLOOR = ".pt per image (released)", "lzma of everything"


def stored_maps(count: int, archive: Path | None, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and tails of real photographs, repeated up to `images`."""
    maps = [stored_map(logits) for logits in real_maps(AnnotatorMaps(CACHE), count, archive)]
    index = np.arange(images) % len(maps)
    scores, classes, tail = (
        torch.cat([getattr(one, name) for one in maps]).numpy()[index] for name in ("scores", "classes", "tail")
    )
    return scores, classes.astype(np.uint16), tail


def write_pt(folder: Path, scores: np.ndarray, classes: np.ndarray) -> Reader:
    folder.mkdir()
    for number, (score, index) in enumerate(zip(scores, classes, strict=True)):
        stacked = np.stack([score, index.astype(np.float16)]).transpose(0, 3, 1, 2)
        torch.save(torch.from_numpy(stacked.copy()), folder / f"{number:06d}.pt")
    return lambda number: torch.load(folder / f"{number:06d}.pt", weights_only=True)


def write_two(path: Path, scores: np.ndarray, classes: np.ndarray, options: dict[str, Any]) -> Reader:
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for name, values in (("scores", scores), ("classes", classes)):
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), **options)
    file = h5py.File(path, "r", rdcc_nbytes=0)
    first, second = file["scores"], file["classes"]
    return lambda number: (first[number], second[number])


def write_packed(path: Path, scores: np.ndarray, classes: np.ndarray) -> Reader:
    """One uncompressed record per image, read without HDF5's filters: the speed that a file can give at all."""
    words = np.concatenate([scores.view(np.uint16).reshape(len(scores), -1), classes.reshape(len(classes), -1)], 1)
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset("records", data=words, chunks=(1, words.shape[1]))
    file = h5py.File(path, "r", rdcc_nbytes=0)
    records, shape = file["records"].id, scores.shape[1:]

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.frombuffer(records.read_direct_chunk((number, 0))[1], np.uint16)
        half = len(found) // 2
        return found[:half].view(np.float16).reshape(shape), found[half:].reshape(shape)

    return read


def write_ours(
    folder: Path, scores: np.ndarray, classes: np.ndarray, tail: np.ndarray | None, storage: str
) -> np.ndarray:
    """One shard, as the annotate job writes it; returns the sample ids."""
    folder.mkdir()
    ids = np.array([sample_id(f"n/{number}.JPEG") for number in range(len(scores))], dtype=np.uint64)
    rows = LabelRows(
        ids, scores, classes, tail, np.full((len(ids), 2), 500), np.zeros(len(ids), np.uint8), [""] * len(ids)
    )
    attributes = ShardAttributes(
        annotator="bench", architecture="bench", weights_sha256="0" * 64, image_px=576, view="squash", preprocessing={},
        num_classes=1000, rows=18, cols=18, k=5, precision="float16", split="train", shard=0, total=1,
        manifest_digest="bench", labels_digest="bench", libraries={}, created="", storage=storage,
    )  # fmt: skip
    part, shard = folder / "part.h5", folder / shard_file_name("train", 0, 1)
    write_part(part, rows, storage)
    summary = assemble_parts([part], shard, attributes, ids)
    part.unlink()
    write_json(marker_path(shard), {"sha256": summary.sha256})
    assert sha256_of(shard) == summary.sha256
    return ids


def plain_reader(path: Path) -> Reader:
    """The reader of docs/label-format.md: h5py and numpy only."""
    file = h5py.File(path, "r", rdcc_nbytes=0)
    rows, cols, k = (int(file.attrs[name]) for name in ("rows", "cols", "k"))
    entries, records = rows * cols * k, file["records"]

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        record = records[number]
        planes, index, vocabulary = record[8 : 8 + 3 * entries].reshape(3, entries)
        scores = np.add.accumulate(planes.reshape(k, -1), dtype=np.uint16).view(np.float16)
        classes = np.add.accumulate(vocabulary, dtype=np.uint16)[index]
        return (
            scores.reshape(k, rows, cols).transpose(1, 2, 0),
            classes.reshape(k, rows, cols).transpose(1, 2, 0),
        )

    return read


def layouts(
    folder: Path, scores: np.ndarray, classes: np.ndarray, tail: np.ndarray
) -> Iterator[tuple[str, float, float, Reader | None]]:
    """Each layout's name, bytes per image (on disk), seconds to write, and a function that reads one image."""
    count = len(scores)
    started = time.perf_counter()
    read = write_pt(folder / "pt", scores, classes)
    # a file occupies whole blocks of its file system
    disk = sum(path.stat().st_blocks * 512 for path in (folder / "pt").iterdir())
    yield PT, disk / count, time.perf_counter() - started, read
    for number, (name, options) in enumerate(TWO_DATA_SETS.items()):
        if options is not None:
            path, started = folder / f"two{number}.h5", time.perf_counter()
            read = write_two(path, scores, classes, options)
            yield name, path.stat().st_size / count, time.perf_counter() - started, read
    path, started = folder / "packed.h5", time.perf_counter()
    read = write_packed(path, scores, classes)
    yield "HDF5, packed raw, direct chunk", path.stat().st_size / count, time.perf_counter() - started, read
    for name, tails, storage in (
        ("shards, compact", None, "compact"),
        ("shards, compact, with tail", tail, "compact"),
        ("shards, fast", None, "fast"),
        ("shards, fast, with tail", tail, "fast"),
    ):
        place, started = folder / name.replace(" ", "_"), time.perf_counter()
        ids = write_ours(place, scores, classes, tails, storage).tolist()
        seconds, shard = time.perf_counter() - started, next(place.glob("*.h5"))
        store = LabelStore(place, "train")
        yield name, shard.stat().st_size / count, seconds, lambda number, s=store, ids=ids: s[ids[number]]
        if name == "shards, compact":
            yield f"{name}, by plain h5py", shard.stat().st_size / count, seconds, plain_reader(shard)
    raw = [
        io.BytesIO(score.tobytes() + index.tobytes()).getvalue() for score, index in zip(scores, classes, strict=True)
    ]
    started = time.perf_counter()
    sizes = [len(lzma.compress(content)) for content in raw[:200]]
    yield FLOOR, statistics.mean(sizes), (time.perf_counter() - started) * count / len(sizes), None


def check_equal(found: Any, score: np.ndarray, index: np.ndarray) -> None:
    """Every layout gives back the very numbers."""
    if isinstance(found, torch.Tensor):
        found = found.permute(0, 2, 3, 1).numpy()
    scores, classes = (found.scores, found.classes) if hasattr(found, "scores") else found
    np.testing.assert_array_equal(scores, score)
    np.testing.assert_array_equal(classes, index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20, help="maps of the demo's photographs (default: %(default)s)")
    parser.add_argument("--photographs", type=Path, help="tar file: 80 of its pictures are added to the maps")
    parser.add_argument(
        "--images", type=int, default=1000, help="maps are repeated up to so many (default: %(default)s)"
    )
    parser.add_argument("--reads", type=int, default=1000, help="random reads per layout and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scores, classes, tail = stored_maps(args.maps, args.photographs, args.images)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        found = list(layouts(Path(folder), scores, classes, tail))
        rates: dict[str, list[float]] = {name: [] for name, *_ in found}
        for repeat in range(args.repeats + 1):
            order = rng.integers(0, args.images, args.reads).tolist()
            for name, _, _, read in found:
                if read is None:
                    continue
                if not repeat:  # the first round warms up and checks
                    for number in order[:50]:
                        check_equal(read(number), scores[number], classes[number])
                started = time.perf_counter()
                for number in order:
                    read(number)
                if repeat:
                    rates[name].append(args.reads / (time.perf_counter() - started))
    rows = []
    for name, size_bytes, write_s, read in found:
        paired = [own / pt for own, pt in zip(rates[name], rates[PT], strict=True)] if read else []
        rows.append(
            {
                "layout": name,
                "images_per_s": round(statistics.median(rates[name])) if read else None,
                "ratio_to_pt": round(statistics.median(paired), 1) if read else None,
                "bytes_per_image": round(size_bytes),
                "write_us_per_image": round(write_s / args.images * 1e6),
            }
        )
    print(
        f"{args.images} real maps of 18 x 18 x 5, {args.reads} random reads, median of {args.repeats} repeats, 1 thread"
    )
    for row in rows:
        rate = f"{row['images_per_s']:>9} img/s {row['ratio_to_pt']:>6}x" if row["images_per_s"] else " " * 24
        print(f"{row['layout']:36} {rate} {row['bytes_per_image']:>7} B {row['write_us_per_image']:>6} us to write")
    if args.record:
        lines = ResultLines("labels_storage", fresh=True)
        for row in rows:
            lines.add(**row, images=args.images, repeats=args.repeats)
    if args.figure:
        draw(rows, args.figure)


# where a layout's name stands, in points from its dot, so that names do not cover each other
NAME_AT = {
    "shards, compact": (-6, 12),
    "shards, compact, with tail": (-6, -28),
    "shards, compact, by plain h5py": (-6, -16),
    "HDF5, 2 data sets, gzip 4": (9, -7),
    "shards, fast": (-66, -4),
    "shards, fast, with tail": (9, -4),
}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bytes against reads per second, ours in another colour."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in rows:
        if row["images_per_s"]:
            place = (row["bytes_per_image"], row["images_per_s"])
            colour = "#D55E00" if row["layout"].startswith("shards") else "#0072B2"
            axis.plot(*place, "o", color=colour, markersize=8)
            offset = NAME_AT.get(row["layout"], (9, 4))
            axis.annotate(row["layout"], place, textcoords="offset points", xytext=offset, fontsize=8, color=colour)
    floor = next(row["bytes_per_image"] for row in rows if row["layout"] == FLOOR)
    axis.axvline(floor, color="#999999", linestyle=":")
    axis.text(floor, axis.get_ylim()[1], " lzma of everything", fontsize=8, va="top", color="#666666")
    axis.set_yscale("log")
    axis.set_xlim(3000, 10500)
    axis.set_xlabel("bytes per image on disk (18 x 18 map, top 5)")
    axis.set_ylabel("random single-image reads per second")
    axis.grid(True, which="both", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
