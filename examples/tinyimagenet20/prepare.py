"""Lays out the data of the study: photographs of 20 classes of Tiny ImageNet, divided anew so that 3,000 are held out.

usage: python examples/tinyimagenet20/prepare.py tinyimagenet20.tar FOLDER

The archive holds train/ and val/ with one folder a class, 500 and 50 photographs in each. FOLDER gets, by a fixed seed:

    val          the archive's val and 100 a class of its train: 3,000
    train        the other 400 a class: 8,000
    train2000    100 a class of train (links): 2,000

Photographs that show the same picture as another one never go to the held-out part, and are left out of both trainings
where that other one is in the archive's val.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

from tokenlabel.data.duplicates import find_near_duplicates

HELD_OUT, SMALL = 100, 100  # of each class of the archive's train
SEED = 0


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="tar file with train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    parser.add_argument("folder", type=Path, help="folder to make")
    args = parser.parse_args()
    with tarfile.open(args.archive) as archive:
        names = sorted(name for name in archive.getnames() if name.lower().endswith((".jpeg", ".jpg", ".png")))
        encoded = [archive.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    group, _ = find_near_duplicates(encoded.__getitem__, len(encoded))
    members = defaultdict(list)
    for name, number in zip(names, group.tolist(), strict=True):
        members[number].append(name)
    twin_of = {name: others for others in members.values() if len(others) > 1 for name in others}
    content = dict(zip(names, encoded, strict=True))
    counts: dict[str, int] = defaultdict(int)

    def put(split: str, chosen: list[str]) -> None:
        for name in chosen:
            path = args.folder / split / Path(name).parent.name / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[name])
            counts[split] += 1

    by_class = defaultdict(list)
    for name in names:
        by_class[Path(name).parent.name, _split_of(name)].append(name)
    for (folder, split), photographs in sorted(by_class.items()):
        if split == "val":
            put("val", photographs)
            continue
        photographs = [n for n in photographs if not any(_split_of(other) == "val" for other in twin_of.get(n, []))]
        random.Random(f"{SEED} {folder}").shuffle(photographs)
        held_out = [name for name in photographs if name not in twin_of][:HELD_OUT]
        rest = [name for name in photographs if name not in set(held_out)]
        put("val", held_out)
        put("train", rest)
        for name in rest[:SMALL]:
            place = Path(folder) / Path(name).name
            (args.folder / "train2000" / folder).mkdir(parents=True, exist_ok=True)
            os.link(args.folder / "train" / place, args.folder / "train2000" / place)
            counts["train2000"] += 1
    said = ", ".join(f"{split}: {count:,}" for split, count in sorted(counts.items()))
    sys.stdout.write(f"{said}\n")


def _split_of(name: str) -> str:
    return Path(name).parts[-3]


if __name__ == "__main__":
    main()
