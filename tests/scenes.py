"""Generated scenes: photographs of coloured rectangles with their masks in ADE20K's layout, small enough to train on in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlabel.core.files import write_json
from tokenlabel.data.scenes import SceneManifest, build_scene_manifests, save_scene_manifests

from .conftest import machine_settings

CLASSES = ("wall", "sky", "tree")
COLOURS = np.array([(128, 128, 128), (200, 60, 40), (40, 90, 220), (60, 180, 70)], np.uint8)  # the first: ignored
HEAD = {
    "kind": "fcn", "channels": 8, "convolutions": 1, "concatenate_input": False, "dropout": 0.0,
    "levels": {"blocks": "even", "scales": [1, 1]}, "auxiliary": {"level": 0, "channels": 8, "convolutions": 1, "dropout": 0.0},
}  # fmt: skip
PLACES = {"train": "training", "val": "validation"}


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (height, width, 3) and its ids (height, width): one class, two rectangles of others, two columns ignored."""
    ids = np.full((height, width), rng.integers(1, len(CLASSES) + 1), np.uint8)
    for _ in range(2):
        top, left = rng.integers(0, height * 2 // 3), rng.integers(0, width * 2 // 3)
        ids[top : top + height // 2, left : left + width // 2] = rng.integers(1, len(CLASSES) + 1)
    ids[:, :2] = 0
    noise = rng.integers(-12, 13, (height, width, 3))
    return (COLOURS[ids].astype(int) + noise).clip(0, 255).astype(np.uint8), ids


def write_scenes(root: Path, *, train: int = 8, val: int = 4, size: tuple[int, int] = (40, 56), seed: int = 0) -> None:
    """Writes photographs (PNG), masks (ids from 1, 0 is ignored) and objectInfo.txt."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            photograph, ids = draw_scene(rng, *size)
            for kind, pixels in (("images", photograph), ("annotations", ids)):
                path = root / kind / PLACES[split] / f"scene_{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0.3\t1\t1\t{name} " for i, name in enumerate(CLASSES, start=1))]
    (root / "objectInfo.txt").write_text("\n".join(lines) + "\n")


def scene_machine(root: Path, **changes: Any) -> dict[str, Any]:
    """machine.json of a small job on such scenes."""
    places = {split: {"images": f"images/{name}", "masks": f"annotations/{name}"} for split, name in PLACES.items()}
    scenes = {**places, "classes": "objectInfo.txt", "on_unreadable": "record", "max_unreadable_fraction": 0.1}
    return machine_settings(root, segmentation_root=str(root), scenes=scenes) | changes


def scene_spec(**changes: Any) -> dict[str, Any]:
    """The spec of such scenes."""
    return {
        "stage": "scenes", "version": 1, "name": "drawn", "release": "1", "num_classes": len(CLASSES),
        "classes": "objectInfo.txt", "first_id": 1, "ignore_id": 0, "images": None,
    } | changes  # fmt: skip


def write_scene_manifests(folder: Path, root: Path) -> dict[str, SceneManifest]:
    """Lists such scenes, as the scene manifest's job does; returns split -> manifest."""
    manifests = build_scene_manifests(scene_spec(), scene_machine(root))
    write_json(folder / "manifest.done", save_scene_manifests(folder, manifests))
    return manifests


def add_segmentation(overlay: dict[str, Any], root: Path | str) -> None:
    """Adds to the small study's overlay a table `transfer`: FCN on a backbone of hard labels and on one of random weights.

    Args:
        overlay: changed in place.
        root: of `write_scenes(root, train=8, val=4)`.
    """
    overlay["segmentation_root"] = str(root)
    overlay["caps"] |= {"iterations": 4, "segment_crop_px": 32, "batch_size": 4}
    overlay["machine"] |= {"segment_micro_batch": 2, "segment_mem_mb": 1000, "max_job_hours": None}
    rows = [
        {"name": "random", "label": "random weights", "set": {"backbone": "random"}},
        {"name": "hard", "label": "hard labels", "set": {}, "against": "random"},
    ]
    overlay["segmentation"] = {
        "dataset": {
            "name": "shapes", "num_classes": 3, "classes": "objectInfo.txt", "train_images": 8, "val_images": 4,
            "image_size": [40, 56],
        },
        "heads": {"tiny": HEAD},
        "testing": {"scales": [1.0], "flip": True},
        "experiments": {
            "transfer": {
                "question": "Does a backbone that was trained help?", "paper": "none (ours)", "seeds": [0],
                "set": {"model": "lvvit_small", "head": "tiny", "train.supervision": "hard"}, "rows": rows,
            }
        },
    }  # fmt: skip
    overlay["select"]["segmentation"] = ["transfer"]
