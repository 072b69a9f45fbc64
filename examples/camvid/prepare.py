"""Lays out the data of the study: CamVid's 367 photographs to train on and 101 held out, each with a mask of 11 classes.

usage: python examples/camvid/prepare.py camvid.tar FOLDER

The archive holds images/{training,validation}/NAME.jpg, annotations/{training,validation}/NAME.png (ids 0 to 10, 11: ignored) and
classes.txt with one name a line, the last one for id 11. FOLDER gets the same, and classes.txt without that line. Anything else
in the archive, or another number of photographs, stops with one line: the study's numbers are of exactly these.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tokenlabel.core.errors import DataError, exit_on_user_error

PHOTOGRAPHS = {"training": 367, "validation": 101}
CLASSES, IGNORED_ID = 11, 11
SIZE = (480, 360)  # width, height


def main() -> int:
    """Writes the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="camvid.tar")
    parser.add_argument("folder", type=Path, help="folder to make")
    args = parser.parse_args()
    try:
        found = read_archive(args.archive)
        check(found)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{args.archive}: {error}. Give the archive that examples/camvid/README.md describes."
        ) from None
    for place, content in found.items():
        path = args.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    said = ", ".join(f"{split}: {count}" for split, count in PHOTOGRAPHS.items())
    sys.stdout.write(f"{said}\n")
    return 0


def read_archive(path: Path) -> dict[PurePosixPath, bytes]:
    """Place below the archive's one folder -> content; raises ValueError for a place that leads out of it."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{member.name}: leads out of the folder")
            if member.isfile():
                found[PurePosixPath(*place.parts[1:])] = archive.extractfile(member).read()  # type: ignore[union-attr]
    names = PurePosixPath("classes.txt")
    if names in found:
        lines = found[names].decode().split("\n")[:CLASSES]
        found[names] = "".join(f"{line.strip()}\n" for line in lines).encode()
    return found


def check(found: dict[PurePosixPath, bytes]) -> None:
    """Refuses with a ValueError what is not the data set that the study is of."""
    names = found.get(PurePosixPath("classes.txt"), b"").decode().splitlines()
    if len(set(names)) != CLASSES:
        raise ValueError(f"classes.txt: {len(set(names))} names, expected {CLASSES}")
    for split, count in PHOTOGRAPHS.items():
        photographs = {place.stem for place in found if place.parts[:-1] == ("images", split)}
        masks = {place.stem for place in found if place.parts[:-1] == ("annotations", split)}
        if photographs != masks:
            raise ValueError(f"{split}: {sorted(photographs ^ masks)[0]} lacks its photograph or its mask")
        if len(photographs) != count:
            raise ValueError(f"{split}: {len(photographs)} photographs, expected {count}")
        for stem in sorted(masks):
            mask = Image.open(io.BytesIO(found[PurePosixPath("annotations", split, f"{stem}.png")]))
            if mask.mode not in ("L", "P") or mask.size != SIZE:
                raise ValueError(f"mask of {stem}: mode {mask.mode}, {mask.size} px, expected ids of 8 bits, {SIZE}")
            if (largest := int(np.asarray(mask).max())) > IGNORED_ID:
                raise ValueError(f"mask of {stem}: class id {largest}, expected at most {IGNORED_ID}")


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
