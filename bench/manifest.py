"""How long a manifest takes: files listed on a real disk, and all that follows the listing for as many photographs as ImageNet has.

usage: python bench/manifest.py [--files 20000] [--names 200000] [--repeats 3] [--record]

The files are tiny and lie in class folders of 100. The names are generated as ImageNet's (1,000 classes, 64 shards) and given to
`build_manifests` in place of a listing. To record: --files 100000 --names 1281167. Memory is Python's and numpy's own at its peak
(tracemalloc, without the listing that was given), in a run of its own. `ratio` is to a floor in the same process: `os.walk` with a
`stat` of each file, or one BLAKE2b of each path. `imagenet_s` is the time at this rate for 1,281,167 photographs.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.record import ResultLines
from tokenlabel.data import manifest as manifests
from tokenlabel.data.listing import Entry, Listing

IMAGENET = 1_281_167
PER_CLASS = 100


def spec(classes: int) -> dict[str, Any]:
    return {
        "class_map": None,
        "num_classes": classes,
        "val_fraction": None,
        "val_seed": None,
        "images": None,
        "shards": 64,
    }


def machine(root: Path, val: str) -> dict[str, Any]:
    return {"data_root": str(root), "threads": 1, "dataset": {"format": "folder", "train": "train", "val": val}}


def write_files(root: Path, files: int) -> int:
    """Class folders of PER_CLASS tiny files under root/train, and one for validation; returns the number of classes."""
    classes = max(1, files // PER_CLASS)
    for number in range(classes):
        for split, count in (("train", PER_CLASS), ("val", 1)):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"n{number:08d}_{index}.JPEG").write_bytes(b"x" * (index + 1))
    return classes


def generated(names: int) -> Listing:
    """A listing of ImageNet's shape, in the order of its paths."""
    classes = [f"n{number:08d}" for number in range(1000)]
    entries = [
        Entry(f"{name}/{name}_{index}.JPEG", 100_000 + index, -1, 0, name)
        for number, name in enumerate(classes)
        for index in range(names * (number + 1) // 1000 - names * number // 1000)
    ]
    return Listing(sorted(entries, key=lambda entry: entry.path), classes)


def walk(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118


def hash_paths(listing: Listing) -> None:
    for entry in listing.entries:
        hashlib.blake2b(entry.path.encode(), digest_size=8).digest()


def peak_mb(work: Callable[[], object]) -> float:
    tracemalloc.start()
    kept = work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    del kept
    return peak


def seconds_of(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    kept = work()
    elapsed_s = time.perf_counter() - started
    del kept
    return elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="real files (default: %(default)s)")
    parser.add_argument("--names", type=int, default=200_000, help="generated names (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="paired timings (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/manifest.jsonl")
    args = parser.parse_args()
    lines = ResultLines("manifest", fresh=True) if args.record else None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files_classes = write_files(root, args.files)
        files = files_classes * (PER_CLASS + 1)
        listing = generated(args.names)
        one = Listing([Entry("n00000000/v.JPEG", 1, -1, 0, "n00000000")], ["n00000000"])

        def listed(_root: Path, location: str, _format: str) -> Listing:
            return listing if location == "train" else one

        def build_from_files() -> object:
            return manifests.build_manifests(spec(files_classes), machine(root, "val"))

        def build_from_names() -> object:
            with mock.patch.object(manifests, "list_entries", listed):
                return manifests.build_manifests(spec(1000), machine(root, "one"))

        def build_and_save() -> object:
            return manifests.save_manifests(root / "saved", build_from_names())  # type: ignore[arg-type]

        ways: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
            "real files, all of it": (files, build_from_files, lambda: walk(root)),
            "generated names, after the listing": (args.names, build_from_names, lambda: hash_paths(listing)),
            "the same, and written": (args.names, build_and_save, lambda: hash_paths(listing)),
        }
        print(f"{'what':36} {'photographs':>11} {'seconds':>8} {'photographs/s':>13} {'ratio':>6} {'peak MB':>8}")
        for name, (count, ours, floor) in ways.items():
            floor()  # the disk's cache is warm for both
            pairs = [(seconds_of(ours), seconds_of(floor)) for _ in range(args.repeats)]
            taken = statistics.median(first for first, _ in pairs)
            row = {
                "what": name,
                "photographs": count,
                "seconds": taken,
                "photographs_per_s": count / taken,
                "ratio": statistics.median(first / second for first, second in pairs),
                "peak_mb": peak_mb(ours),
                "imagenet_s": IMAGENET * taken / count,
            }
            print(
                f"{name:36} {count:11,} {taken:8.2f} {row['photographs_per_s']:13,.0f} {row['ratio']:6.2f} {row['peak_mb']:8.0f}"
            )
            if lines:
                lines.add(**row)


if __name__ == "__main__":
    main()
