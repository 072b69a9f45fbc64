"""Makes a folder of photographs as somebody might have one: four classes, a broken file, a doubled and a wrongly sorted picture.

usage: python examples/custom_folder/make_photographs.py FOLDER [--crops 12]

Real ImageNet photographs of the package foolbox, cut into crops. Crops of one photograph resemble each other, so accuracies of this
example say nothing; it shows the way.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from tokenlabel.demo.photographs import find_photographs

CLASS_NAMES = ("first", "second", "Straße", "the others")  # names as people give them
PHOTOGRAPHS_PER_CLASS = 3
SHARE = (0.45, 0.8)  # of the photograph's sides that a crop has


def make_photographs(folder: Path, crops: int) -> None:
    """Writes four class folders.

    Args:
        folder: is made.
        crops: of each photograph; a class has three photographs.
    """
    rng = random.Random(0)
    found = [path for _, path in find_photographs()]
    for number, name in enumerate(CLASS_NAMES):
        (folder / name).mkdir(parents=True)
        for path in found[PHOTOGRAPHS_PER_CLASS * number :][:PHOTOGRAPHS_PER_CLASS]:
            with Image.open(path) as opened:
                photograph = opened.convert("RGB")
            for crop in range(crops):
                width, height = (round(side * rng.uniform(*SHARE)) for side in photograph.size)
                left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
                box = (left, top, left + width, top + height)
                photograph.crop(box).save(folder / name / f"{path.stem}_{crop:02d}.jpg", quality=92)
    first = sorted((folder / CLASS_NAMES[0]).iterdir())
    (folder / CLASS_NAMES[0] / "broken.jpg").write_bytes(first[0].read_bytes()[:50])
    (folder / CLASS_NAMES[1] / "wrongly sorted.jpg").write_bytes(first[1].read_bytes())
    with Image.open(first[2]) as picture:
        picture.resize((picture.width // 2, picture.height // 2)).save(folder / CLASS_NAMES[0] / "smaller.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=12, help="of each of 12 photographs (default: %(default)s)")
    args = parser.parse_args()
    make_photographs(args.folder, args.crops)
