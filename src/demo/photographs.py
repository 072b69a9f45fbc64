"""Cuts the 20 ImageNet photographs of the package foolbox into training and validation crops.

Crops of one photograph overlap and lie on both sides of the split: the demo checks the machinery, never the accuracy.
"""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path

from PIL import Image

from ..core.errors import DataError
from ..core.files import atomic_path, write_text
from ..core.seeds import derived_seed

TRAIN_CROPS, VAL_CROPS = 6, 2  # of each photograph
SMALLEST, LARGEST = 0.45, 0.9  # sides of a crop, of the photograph's sides


def find_photographs() -> list[tuple[int, Path]]:
    """ImageNet class index and file of each photograph.

    Raises:
        DataError: foolbox is not installed or ships no photographs.
    """
    found = importlib.util.find_spec("foolbox")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "the demo's photographs ship in the package foolbox, which is not installed: pip install foolbox==3.3.4"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "data"
    photographs = []
    for path in sorted(folder.glob("imagenet_*.jpg")):
        if match := re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", path.name):
            photographs.append((int(match[1]), path))
    if not photographs:
        raise DataError(f"{folder}: no photographs named imagenet_NN_LABEL.jpg; the demo needs foolbox==3.3.4.")
    return photographs


def write_crops(root: Path) -> int:
    """Writes root/train and root/val, one folder per WordNet id; existing crops are left alone.

    Returns:
        how many crops were written.
    """
    marker = root / "crops.done"  # spares the next call the second that timm takes to load
    if marker.exists():
        return 0
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    written = 0
    for class_index, path in find_photographs():
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        for number in range(TRAIN_CROPS + VAL_CROPS):
            split = "train" if number < TRAIN_CROPS else "val"
            crop_path = root / split / info.index_to_label_name(class_index) / f"{path.stem}_{number}.jpg"
            if crop_path.exists():
                continue
            rng = random.Random(derived_seed("demo", path.name, number))
            width = round(photograph.width * rng.uniform(SMALLEST, LARGEST))
            height = round(photograph.height * rng.uniform(SMALLEST, LARGEST))
            left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
            with atomic_path(crop_path) as temporary:
                photograph.crop((left, top, left + width, top + height)).save(temporary, format="JPEG", quality=92)
            written += 1
    write_text(marker, f"{written} crops written last\n")
    return written
