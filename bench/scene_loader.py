"""From photographs and masks to segmentation's batches, beside classification's batches of the same photographs, by one thread.

usage: python bench/scene_loader.py [--images 32] [--repeats 15] [--record]

JPEGs of 683x512 (ADE20K's typical size) made of the demo's real photographs; a mask is its photograph, coarse and in 24 colours, so
that it has regions to compress. Recipe `paper` of config.yaml: crops of 512 px, scale 0.5 to 2, colours. Classification: recipe
`released_code` at 224 px without labels. *torchvision* is the same augmentation by its transforms v2 on photographs and masks that
Pillow decodes: they resize the whole scene, then cut. No worker processes: each way does all its work in this one, until what a
loader process hands over (uint8). All ways run in turn, repeat after repeat, and are timed in processor seconds; ratios are medians
of the pairs. The last lines say where the time goes, and what the manifest's job takes for a scene.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from decode import encoded_at
from PIL import Image
from record import ROOT, ResultLines
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from train_loader import MEAN, STD, Ours, per_image, seconds_of

from tokenlabel.core.config import load_config
from tokenlabel.data.manifest import build_manifests
from tokenlabel.data.masks import decode_mask
from tokenlabel.data.pixels import decode_upright
from tokenlabel.data.scenes import SceneManifest, build_scene_manifests
from tokenlabel.segment.augment import SceneAugmentation
from tokenlabel.segment.batches import SceneBatch, SceneBatches, SceneTrainingSet

SIZE, CLASSES, BATCH = (683, 512), 24, 16
RAW = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def write_scenes(root: Path, images: int) -> None:
    """Photographs in a class folder for both splits, and their masks: ids from 1."""
    for index, encoded in enumerate(encoded_at(SIZE, images)):
        with Image.open(io.BytesIO(encoded)) as photograph:
            coarse = photograph.resize((SIZE[0] // 4, SIZE[1] // 4), Image.Resampling.BOX).quantize(CLASSES)
        ids = np.array(coarse.resize(SIZE, Image.Resampling.NEAREST)) + 1
        for folder in ("train", "val"):
            for kind in ("images", "masks"):
                (root / kind / folder / "n01440764").mkdir(parents=True, exist_ok=True)
            (root / "images" / folder / "n01440764" / f"{index}.jpg").write_bytes(encoded)
            Image.fromarray(ids.astype(np.uint8)).save(root / "masks" / folder / "n01440764" / f"{index}.png")


def machine_of(root: Path) -> dict[str, Any]:
    machine: dict[str, Any] = RAW["machine"] | {
        "data_root": str(root / "images"), "segmentation_root": str(root), "threads": 1, "workers": 0, "timm_names": [],
        "dataset": {"format": "folder", "train": "train", "val": "val", "on_unreadable": "fail", "max_unreadable_fraction": 0.0},
        "scenes": {
            "classes": None, "on_unreadable": "fail", "max_unreadable_fraction": 0.0,
            **{split: {"images": f"images/{split}", "masks": f"masks/{split}"} for split in ("train", "val")},
        },
    }  # fmt: skip
    return machine


class Scenes:
    """Segmentation's batches of one interval after another."""

    def __init__(self, manifest: SceneManifest, machine: dict[str, Any], recipe: dict[str, Any]) -> None:
        dataset = SceneTrainingSet(manifest, machine, SceneAugmentation(recipe, MEAN, STD), seed=0)
        self.batches = SceneBatches(
            dataset, batch_size=BATCH, micro_batch=BATCH, workers=0, interval_iterations=len(manifest) // BATCH
        )
        self.interval = -1

    def __iter__(self) -> Iterator[SceneBatch]:
        self.interval += 1
        for step in self.batches(self.interval, 0):
            yield from step


def by_torchvision(root: Path, recipe: dict[str, Any]) -> Callable[[], Any]:
    """The same augmentation by torchvision's transforms, without the limit on a class's share."""
    least, most = (round(scale * recipe["short_side_px"]) for scale in recipe["scale_range"])
    crop = [recipe["crop_px"]] * 2
    transforms = v2.Compose([
        v2.RandomResize(least, most + 1), v2.RandomCrop(crop, pad_if_needed=True), v2.RandomHorizontalFlip(),
        v2.RandomPhotometricDistort(brightness=(1 - 32 / 255, 1 + 32 / 255)),
    ])  # fmt: skip

    def load(path: Path) -> torch.Tensor:
        with Image.open(path) as picture:
            image = tv_tensors.Image(functional.pil_to_tensor(picture.convert("RGB")))
        with Image.open(root / "masks" / path.relative_to(root / "images").with_suffix(".png")) as picture:
            mask = tv_tensors.Mask(functional.pil_to_tensor(picture))
        changed: torch.Tensor = transforms(image, mask)[0]
        return changed

    paths = sorted((root / "images" / "train").rglob("*.jpg"))
    return lambda: [load(path) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2 * BATCH, help="photographs a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="paired repeats (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/scene_loader.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ResultLines("scene_loader", fresh=True) if args.record else None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root, args.images // BATCH * BATCH)
        measure(root, args, lines)


def measure(root: Path, args: argparse.Namespace, lines: ResultLines | None) -> None:
    """Prints scenes/s of each way beside photographs/s of classification, and the parts of a scene."""
    machine = machine_of(root)
    scene_spec = {"num_classes": CLASSES, "first_id": 1, "ignore_id": 0, "images": None}
    manifest = build_scene_manifests(scene_spec, machine)["train"]
    photographs = build_manifests(
        {"class_map": "imagenet-1k", "num_classes": 1000, "val_fraction": None, "val_seed": 0, "images": None, "shards": 1},
        machine,
    )["train"]  # fmt: skip
    recipe = load_config(RAW).segmentation.recipes["paper"].model_dump(mode="json")
    classification = Ours(types.SimpleNamespace(manifest=photographs, machine=machine), None)  # type: ignore[arg-type]
    everything = Scenes(manifest, machine, recipe)
    device = Scenes(manifest, machine | {"augment_on_gpu": True}, recipe)
    ways: dict[str, Callable[[], Any]] = {
        "classification, 224 px": lambda: list(classification),
        "scenes, 512 px": lambda: list(everything),
        "scenes, 512 px, colours left to the device": lambda: list(device),
        "scenes, 512 px, by torchvision": by_torchvision(root, recipe),
    }
    for work in ways.values():
        work()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, work in ways.items():
            seconds[way].append(seconds_of(work))
    first, own = (seconds[way] for way in ("classification, 224 px", "scenes, 512 px"))
    print(f"{'way':44} {'scenes/s':>9} {'of classification':>18} {'time, of ours':>14}")
    for way, taken in seconds.items():
        row = {
            "way": way,
            "scenes_per_s": len(manifest) / statistics.median(taken),
            "of_classification": statistics.median(one / other for one, other in zip(first, taken, strict=True)),
            "time_of_ours": statistics.median(other / one for one, other in zip(own, taken, strict=True)),
        }
        print(f"{way:44} {row['scenes_per_s']:9.1f} {row['of_classification']:18.3f} {row['time_of_ours']:14.2f}")
        if lines:
            lines.add(**row)
    measure_parts(root, manifest, machine, recipe, args.repeats, lines)


def measure_parts(
    root: Path, manifest: SceneManifest, machine: dict[str, Any], recipe: dict[str, Any], repeats: int, lines: ResultLines | None
) -> None:  # fmt: skip
    """Prints what each step of a scene takes, and the manifest's check."""
    augmentation, ids = SceneAugmentation(recipe, MEAN, STD), manifest.ids
    files = [(root / "images/train" / path).read_bytes() for path in manifest.image_paths[:BATCH]]
    drawn = [(root / "masks/train" / path).read_bytes() for path in manifest.mask_paths[:BATCH]]
    scenes = [manifest.open(machine).read(row) for row in range(BATCH)]
    draws = [augmentation.draw(scene.mask, seed) for seed, scene in enumerate(scenes)]
    squares = [augmentation.square(scene, draw)[0] for scene, draw in zip(scenes, draws, strict=True)]
    spec = {"num_classes": CLASSES, "first_id": 1, "ignore_id": 0, "images": BATCH}
    parts: dict[str, Callable[[], Any]] = {
        "decode the photograph": lambda: [decode_upright(encoded) for encoded in files],
        "decode the mask, ids to classes": lambda: [ids.class_indices(decode_mask(encoded)) for encoded in drawn],
        "draw, with the share of the classes": lambda: [
            augmentation.draw(scene.mask, seed) for seed, scene in enumerate(scenes)
        ],
        "cut, resize, flip, fill": lambda: [
            augmentation.square(scene, draw) for scene, draw in zip(scenes, draws, strict=True)
        ],
        "colours": lambda: [
            augmentation.recolour(square.clone(), draw) for square, draw in zip(squares, draws, strict=True)
        ],
        "the manifest's check of a scene": lambda: build_scene_manifests(spec, machine),
    }
    print(f"\n{'part of a scene':40} {'µs':>8}")
    for name, work in parts.items():
        checked = BATCH + len(manifest) if "manifest" in name else BATCH  # the cap leaves the validation split whole
        taken = per_image(work, checked, repeats)
        print(f"{name:40} {1e6 * taken:8.0f}")
        if lines:
            lines.add(part=name, microseconds=1e6 * taken)


if __name__ == "__main__":
    main()
