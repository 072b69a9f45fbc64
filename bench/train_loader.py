"""From files and labels to training batches: ours against the released loader (tlt 0.2.0) and timm's create_loader, by one thread.

usage: python bench/train_loader.py [--images 32] [--repeats 25] [--tlt FOLDER] [--record]

JPEGs of 500x375 made of the demo's real photographs, labels of a real annotator (EfficientNet-Lite0, 18x18 cells), 224 px,
RandAugment rand-m9-mstd0.5-inc1, erasing 0.25 pixel, random interpolation. The released loader reads one `.pt` an image and
augments before it crops; timm's reads no labels. No worker processes: each way does all its work in this one. `loader` ends with
what a loader process hands over (a uint8 batch and its labels), `normalised` with float pixels, normalised and erased, on the
processor too (where a GPU trains, it does that). All ways run in turn, repeat after repeat, and are timed in processor seconds;
ratios are medians of the pairs.

The last lines say what labels cost: reading them in the loader, and building token and class targets from them, which the
training's device does (here the processor, `--device cuda` a GPU); `share` is of the time a loader core needs for a photograph.

The released side needs `pip install --no-deps tlt==0.2.0 scipy`, or --tlt with the folder tlt of an unpacked copy.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from decode import LITE0, encoded_at
from record import ROOT, ResultLines
from timm.data import ImageDataset, ImageNetInfo, auto_augment, create_loader
from timm.data import transforms as timm_transforms
from timm.data.transforms import str_to_pil_interp
from torch.utils.data import DataLoader

from tokenlabel.annotate.shard_job import annotate_shard
from tokenlabel.core.config import load_config
from tokenlabel.core.files import write_json
from tokenlabel.data.manifest import Manifest, build_manifests, save_manifests
from tokenlabel.data.photographs import Photographs
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import LabelStore, pooled_target, sparse_targets
from tokenlabel.train.augment import Augmentation
from tokenlabel.train.batches import Batches, MicroBatch, TrainingSet

BATCH, IMAGE_PX = 32, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATION = {
    "hflip": 0.5,
    "color_jitter": 0.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "interpolation": "random",
    "re_prob": 0.25,
    "re_mode": "pixel",
}
CPU = torch.device("cpu")


class Workplace:
    """Photographs in class folders, their manifest, and their labels in both of our profiles and as released."""

    def __init__(self, root: Path, images: int) -> None:
        self.root = root
        names, photographs = ImageNetInfo("imagenet-1k"), find_photographs()
        for index, encoded in enumerate(encoded_at((500, 375), images)):
            name = names.index_to_label_name(photographs[index % len(photographs)][0])
            for split in ("train", "val"):
                path = root / split / name / f"{index}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
        self.machine: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["machine"] | {
            "data_root": str(root), "weights_root": "", "timm_names": [], "device": "cpu", "precision": "float32", "threads": 1,
            "workers": 0, "annotate_batch": 16, "annotate_compile": False,
            "dataset": {"format": "folder", "train": "train", "val": "val", "on_unreadable": "fail",
                "max_unreadable_fraction": 0.0},
        }  # fmt: skip
        spec = {
            "class_map": "imagenet-1k",
            "num_classes": 1000,
            "val_fraction": None,
            "val_seed": 0,
            "images": None,
            "shards": 1,
        }
        manifests = build_manifests(spec, self.machine)
        write_json(root / "manifest" / "manifest.done", save_manifests(root / "manifest", manifests))
        self.manifest: Manifest = manifests["train"]

    def labels(self, storage: str) -> LabelStore:
        """Labels of a real annotator."""
        folder = self.root / f"labels_{storage}"
        spec = {
            "stage": "annotate", "version": 1, "dataset": {}, "annotator": LITE0 | {"grid": [18, 18]},
            "labels": {"image_px": 576, "view": "squash", "k": 5, "tail": False, "precision": "float16", "score_step": 0,
                "flip": False, "scales": [1.0]},
        }  # fmt: skip
        done = folder / "train-00000-of-00001.done"
        if not done.exists():
            annotate_shard(spec, self.machine | {"label_storage": storage}, self.manifest, 0, done)
        return LabelStore(folder, "train")

    def write_released_labels(self, store: LabelStore) -> Path:
        """One `.pt` an image: float16 (2, k, rows, cols), scores and classes."""
        folder = self.root / "released"
        for row in range(len(self.manifest)):
            label = store[int(self.manifest.sample_id[row])]
            maps = np.stack([label.scores, label.classes.astype(np.float16)]).transpose(0, 3, 1, 2)
            path = (folder / self.manifest.path(row)).with_suffix(".pt")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(np.ascontiguousarray(maps)), path)
        return folder


def keep_one_bit(module: Any) -> None:
    """Pillow 13 refuses the 0 bits that timm's posterize and its copy in tlt ask for at magnitude 10."""
    bits_of = module.LEVEL_TO_ARG["PosterizeIncreasing"]
    module.LEVEL_TO_ARG["PosterizeIncreasing"] = lambda level, hparams: (max(1, *bits_of(level, hparams)),)


def released_batches(folder: Path | None, data: Path, labels: Path) -> DataLoader[Any] | None:
    """The released loader as it runs before a GPU, without the copy to it."""
    if folder is not None:
        sys.path.insert(0, str(folder.resolve().parent))
    vars(np)["int"] = int  # the released code's numpy had it, and its timm the name below
    timm_transforms._pil_interp = str_to_pil_interp
    try:
        data_module = importlib.import_module("tlt.data")
    except ImportError:
        return None
    keep_one_bit(importlib.import_module("tlt.data.random_augment_label"))
    dataset = data_module.create_token_label_dataset("", str(data), str(labels))
    dataset.transform = data_module.create_token_label_transform(
        IMAGE_PX, is_training=True, use_prefetcher=True, mean=MEAN, std=STD, **AUGMENTATION
    )
    loader = importlib.import_module("tlt.data.loader")
    return DataLoader(dataset, BATCH, shuffle=True, collate_fn=loader.fast_collate, drop_last=True)


def timm_batches(data: Path) -> Any:
    keep_one_bit(auto_augment)
    return create_loader(
        ImageDataset(str(data / "train")), IMAGE_PX, BATCH, is_training=True, mean=MEAN, std=STD, num_workers=0,
        device=CPU, **AUGMENTATION,
    )  # fmt: skip


def augmentation() -> Augmentation:
    config = load_config(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    return Augmentation(config.recipes["released_code"].model_dump(mode="json"), IMAGE_PX, MEAN, STD)


class Ours:
    """Our batches of one epoch after another."""

    def __init__(self, place: Workplace, store: LabelStore | None, **machine: Any) -> None:
        self.dataset = TrainingSet(place.manifest, place.machine | machine, augmentation(), store, seed=0)
        self.epoch = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        self.epoch += 1
        batches = Batches(self.dataset, batch_size=BATCH, micro_batch=BATCH, workers=0)
        for step in batches(self.epoch, 0):
            yield from step


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def per_image(work: Callable[[], Any], images: int, repeats: int, device: torch.device = CPU) -> float:
    """Median seconds per photograph of work on a batch."""

    def waited() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    waited()
    return statistics.median(seconds_of(waited) for _ in range(repeats)) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=BATCH, help="photographs an epoch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="paired epochs (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where targets are built (default: %(default)s)")
    parser.add_argument("--tlt", type=Path, help="folder tlt of an unpacked tlt 0.2.0; otherwise the installed one")
    parser.add_argument("--record", action="store_true", help="write bench/results/train_loader.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ResultLines("train_loader", fresh=True) if args.record else None
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder), args.images)
        stores = {storage: place.labels(storage) for storage in ("compact", "fast")}
        compare_loaders(place, stores, args, lines)
        measure_labels(place, stores, args, lines)


def compare_loaders(
    place: Workplace, stores: dict[str, LabelStore], args: argparse.Namespace, lines: ResultLines | None
) -> None:
    """Prints images/s of each way and the ratios to ours."""
    released = released_batches(args.tlt, place.root, place.write_released_labels(stores["compact"]))
    timm_loader, ours = timm_batches(place.root), Ours(place, stores["compact"])
    bare = Ours(place, None)
    ways: dict[tuple[str, str], Callable[[], Any]] = {
        ("ours", "loader"): lambda: list(ours),
        ("ours, without labels", "loader"): lambda: list(bare),
        ("timm", "loader"): lambda: list(timm_loader.loader),
        ("ours", "normalised"): lambda: [batch.to(CPU) for batch in ours],
        ("ours, without labels", "normalised"): lambda: [batch.to(CPU) for batch in bare],
        ("timm", "normalised"): lambda: list(timm_loader),
    }
    if released is None:
        print("tlt is not installed: its rows stay empty (pip install --no-deps tlt==0.2.0 scipy, or --tlt FOLDER)")
    else:
        ways["released", "loader"] = lambda: list(released)
    images = args.images // BATCH * BATCH
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for work in ways.values():
        work()
    for _ in range(args.repeats):
        for way, work in ways.items():
            seconds[way].append(seconds_of(work))
    print(f"{'way':22} {'until':12} {'images/s':>9} {'ours is faster by':>18}")
    for (name, until), taken in seconds.items():
        pairs = zip(taken, seconds["ours", until], strict=True)
        row = {
            "way": name,
            "until": until,
            "images_per_s": images / statistics.median(taken),
            "ratio": statistics.median(other / own for other, own in pairs),
        }
        print(f"{name:22} {until:12} {row['images_per_s']:9.0f} {row['ratio']:18.2f}")
        if lines:
            lines.add(**row)


def measure_labels(
    place: Workplace, stores: dict[str, LabelStore], args: argparse.Namespace, lines: ResultLines | None
) -> None:
    """Prints what reading labels and building targets cost, beside a photograph's whole time in the loader."""
    device = torch.device(args.device)
    ours = Ours(place, stores["compact"])
    batch = next(iter(ours)).to(device)
    scores, classes = batch.scores, batch.classes
    assert scores is not None
    assert classes is not None
    photographs = Photographs(place.manifest, place.machine, None)
    parts: dict[str, Callable[[], Any]] = {
        "read and decode photographs": lambda: [photographs.pixels(row) for row in range(BATCH)],
        **{
            f"read labels, {name}": lambda store=store: store.get_many(batch.sample_ids)  # type: ignore[misc]
            for name, store in stores.items()
        },
        f"token targets, {device.type}": lambda: sparse_targets(
            scores, classes, None, (14, 14), 1000, affine=batch.affine
        ),
        f"class targets, {device.type}": lambda: pooled_target(scores, classes, None, 1000, affine=batch.affine),
    }
    whole = per_image(lambda: list(ours), args.images // BATCH * BATCH, args.repeats)
    print(f"\n{'part of a photograph':32} {'µs':>8} {'share':>8}")
    for name, work in {"all of the loader": None, **parts}.items():
        taken = whole if work is None else per_image(work, BATCH, 3 * args.repeats, device)
        print(f"{name:32} {1e6 * taken:8.0f} {taken / whole:8.1%}")
        if lines:
            lines.add(part=name, microseconds=1e6 * taken, share=taken / whole)


if __name__ == "__main__":
    main()
