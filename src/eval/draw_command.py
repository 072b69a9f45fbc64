"""Draws label maps over photographs, with class names: one page, one column per annotator.

The study gives its machine settings and manifest; by hand a folder of photographs and a folder of labels are enough:
`tokenlabel draw --root photographs/train --labels labels/lite0-1a2b3c4d --class-map imagenet-1k --out maps.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.command import read_machine
from ..core.errors import ConfigError, DataError
from ..core.log import logger
from ..core.seeds import sample_id

if TYPE_CHECKING:
    from ..labels import LabelStore
    from .drawing import Subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a drawing."""
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="label folders, one column each")
    parser.add_argument("--split", default="train", help="labeled split (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    photographs = parser.add_argument_group("photographs, either by hand or as a study lists them")
    photographs.add_argument("--root", type=Path, help="folder that the labeled photographs' paths are relative to")
    photographs.add_argument("--machine", type=Path, help="a study's machine.json: where the photographs lie")
    photographs.add_argument("--manifest", type=Path, help="folder of the study's manifest")
    photographs.add_argument(
        "--photographs", nargs="+", metavar="PATH", help="which to draw, relative to the root: n01440764/a.JPEG ..."
    )
    photographs.add_argument(
        "--count", type=int, default=6, help="how many to draw where none is named (default: %(default)s)"
    )
    parser.add_argument(
        "--class-map", help="class names with --root: imagenet-1k, or a file with one a line (default: their numbers)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Draws the page.

    Raises:
        ConfigError: neither a root nor a study is given, or both, or no photograph is asked for.
        DataError: a photograph is missing.
        LabelError: a label folder is missing or damaged, or has no row for a photograph.
    """
    by_study = args.machine is not None and args.manifest is not None
    if by_study == (args.root is not None):
        raise ConfigError("draw: give either --root FOLDER, or both --machine and --manifest of a study.")
    if args.count < 1:
        raise ConfigError(f"draw: --count is {args.count}, expected at least 1.")
    from ..labels import LabelStore
    from .drawing import draw_page

    stores = [LabelStore(folder, split=args.split) for folder in args.labels]
    subjects, class_name = _of_study(args) if by_study else _of_folder(args, stores[0])
    draw_page(subjects, stores, class_name, args.out)
    logger.info("%s: %d photographs, %d annotators", args.out, len(subjects), len(stores))
    return 0


def _of_study(args: argparse.Namespace) -> tuple[list[Subject], Callable[[int], str]]:
    """Photographs of a manifest: those named, or the first of evenly spread classes."""
    from ..data.manifest import load_manifest
    from .drawing import Subject, readable_class, spread_evenly

    manifest = load_manifest(args.manifest, args.split)
    source = manifest.open_source(read_machine(args.machine))
    if args.photographs:
        row_of = {manifest.path(row): row for row in range(len(manifest))}
        for path in args.photographs:
            if path not in row_of:
                raise DataError(
                    f"{path}: not in split {args.split} of {args.manifest}; paths are as {manifest.path(0)}."
                )
        rows = [row_of[path] for path in args.photographs]
    else:
        first: dict[int, int] = {}
        for row, index in enumerate(manifest.class_index.tolist()):
            first.setdefault(index, row)
        firsts = list(first.values())
        rows = [firsts[position] for position in spread_evenly(args.count, len(firsts))]
    subjects = [
        Subject(
            title=f"photograph: {readable_class(manifest.classes[int(manifest.class_index[row])])}",
            sample_id=int(manifest.sample_id[row]),
            read=partial(manifest.read, source, row),
        )
        for row in rows
    ]
    return subjects, lambda index: readable_class(manifest.classes[index])


def _of_folder(args: argparse.Namespace, store: LabelStore) -> tuple[list[Subject], Callable[[int], str]]:
    """Photographs of a folder: those named, or evenly spread ones of those that have a label."""
    from ..data.listing import Listing
    from ..data.manifest import class_names
    from ..data.readers import iter_image_files
    from .drawing import Subject, readable_class, spread_evenly

    if not args.root.is_dir():
        raise DataError(f"--root {args.root}: no such folder.")
    paths = args.photographs
    if not paths:
        found = [path.relative_to(args.root).as_posix() for path in iter_image_files(args.root)]
        labeled = [path for path in found if sample_id(path) in store]
        if not labeled:
            raise DataError(
                f"--root {args.root}: none of its {len(found)} photographs has a label in {store.path}. Labels are found by "
                "path: give the folder that holds the class folders."
            )
        paths = [labeled[position] for position in spread_evenly(args.count, len(labeled))]
    for path in paths:
        if not (args.root / path).is_file():
            raise DataError(f"{args.root / path}: no such photograph; --photographs are relative to --root.")
    subjects = [Subject(path, store.id_for(path), (args.root / path).read_bytes) for path in paths]
    if args.class_map is None:
        return subjects, lambda index: f"class {index}"
    names = class_names(args.class_map, Listing([], []), store.num_classes)
    return subjects, lambda index: readable_class(names[index])
