"""Draws what a checkpoint sees in photographs: its class of every token, what its best classes rest on, a segmentation.

The relevance maps are those of the paper's Figs. 6 and 7, for LV-ViT, T2T-ViT and timm's ViT and DeiT; other models get the
class maps alone. A segmenter has no classes of its backbone's: --tokens adds the classifier that it was made of. Where there is a
segmenter every panel is the whole photograph, so that the same thing stands at the same place in all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.command import read_machine
from ..core.errors import DataError
from ..core.files import read_json
from ..core.log import logger
from .checkpoint_arguments import add_checkpoint_arguments, check_arguments, open_checkpoint, warn_of_untrained_head

if TYPE_CHECKING:
    from .visualisation import Sight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a visualisation."""
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--tokens",
        type=Path,
        default=None,
        metavar="CHECKPOINT",
        help="where the first checkpoint is a segmenter's: a classifier to show beside it, as the run that its backbone comes from",
    )
    parser.add_argument(
        "--segmenter",
        type=Path,
        default=None,
        metavar="CHECKPOINT",
        help="where the first checkpoint is a classifier's: a segmenter to show beside it, a run's seed folder",
    )
    parser.add_argument("photographs", type=Path, nargs="+", metavar="PHOTO", help="photographs, or folders of them")
    parser.add_argument(
        "--machine",
        type=Path,
        default=None,
        help="a study's machine.json; PHOTO is the folder of its scene manifest, whose validation photographs are shown",
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--classes", type=int, default=2, help="best classes to explain, one column each (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=6, help="photographs taken from each folder, evenly spread (default: %(default)s)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Draws the page.

    Raises:
        DataError: no photographs, one that cannot be decoded, or an argument out of range.
        CheckpointError: the checkpoint is missing, damaged or unknown.
    """
    check_arguments(args, ("classes", "count"))
    if args.out.suffix.lower() != ".png":
        raise DataError(f"--out {args.out}: must end in .png.")
    classifier, segmenter = _checkpoints(args)
    paths = _chosen(args.photographs, args.count) if args.machine is None else _of_study(args)
    sights = _sights(args, classifier, paths) if classifier else None
    if segmenter:
        _draw_scenes(args, segmenter, paths, sights)
    else:
        from .visualisation import draw_sights

        assert sights is not None  # one of the two is always there
        draw_sights(sights.of, sights.class_name, args.out, map_title=sights.map_title)
    logger.info("%s: %d photographs", args.out, len(paths))
    return 0


def _checkpoints(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """The classifier's checkpoint and the segmenter's, of which one may be missing."""
    is_segmenter = _is_segmenter(args.checkpoint)
    for option, belongs_beside in (("tokens", "segmenter"), ("segmenter", "classifier")):
        found = "segmenter" if is_segmenter else "classifier"
        if getattr(args, option) is not None and belongs_beside != found:
            raise DataError(
                f"--{option} {getattr(args, option)}: goes beside a {belongs_beside}'s checkpoint, and {args.checkpoint} is a "
                f"{found}'s. Leave it out, or exchange the two."
            )
    return (args.tokens, args.checkpoint) if is_segmenter else (args.checkpoint, args.segmenter)


def _is_segmenter(checkpoint: Path) -> bool:
    """Whether the description beside a checkpoint says so; what is missing or damaged is for its reader to refuse."""
    from ..models.model_config import CONFIG_FILE, SEGMENTATION_TASK

    try:
        document = read_json((checkpoint if checkpoint.is_dir() else checkpoint.parent) / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("task") == SEGMENTATION_TASK


@dataclass(frozen=True)
class _Sights:
    """What a classifier says of the photographs, and the words for it."""

    of: list[Sight]
    class_name: Callable[[int], str]
    map_title: str


def _sights(args: argparse.Namespace, checkpoint: Path, paths: Sequence[Path]) -> _Sights:
    from ..engine.device import choose_device
    from .drawing import readable_class
    from .relevance import why_unsupported
    from .visualisation import look_at

    loaded, preprocessing = open_checkpoint(argparse.Namespace(**(vars(args) | {"checkpoint": checkpoint})))
    reason = why_unsupported(loaded.model)
    if reason is not None:
        logger.warning("no relevance maps of this model: %s; the class maps are drawn alone", reason)
    map_title = "class of each token"
    if warn_of_untrained_head(loaded):
        map_title += " (by an untrained head?)"
    found = look_at(
        loaded.model,
        paths,
        preprocessing,
        count=args.classes,
        with_relevance=reason is None,
        device=choose_device(args.device),
    )
    return _Sights(found, lambda index: readable_class(loaded.classes[index]), map_title)


def _draw_scenes(args: argparse.Namespace, checkpoint: Path, paths: Sequence[Path], sights: _Sights | None) -> None:
    from ..engine.device import choose_device
    from ..models.segmentation import load_segmenter
    from .scene_page import SceneView, draw_scene_page
    from .visualisation import segment_photographs

    loaded = load_segmenter(checkpoint)
    scenes = segment_photographs(loaded, paths, device=choose_device(args.device))
    views = []
    for number, (path, (photograph, mask)) in enumerate(zip(paths, scenes, strict=True)):
        view = SceneView(path.name, photograph, mask=mask)
        if sights:
            sight = sights.of[number]
            view = replace(view, prediction=sight.prediction)
            if sight.relevance is not None:
                view = replace(view, classes=sight.classes.tolist(), relevance=sight.relevance)
        views.append(view)
    draw_scene_page(
        views,
        args.out,
        token_class=sights.class_name if sights else None,
        token_title=sights.map_title if sights else "",
        scene_classes=loaded.classes,
    )


def _of_study(args: argparse.Namespace) -> list[Path]:
    """Photographs of a study's validation scenes, evenly spread; those that cannot be decoded are not in its manifest."""
    from ..data.scenes import load_scene_manifest
    from .drawing import spread_evenly

    machine, chosen = read_machine(args.machine), []
    for place in args.photographs:
        manifest = load_scene_manifest(place, "val")
        manifest.open(machine)  # says what is missing
        folder = Path(machine["segmentation_root"]) / machine["scenes"]["val"]["images"]
        chosen += [folder / manifest.image_paths[row] for row in spread_evenly(args.count, len(manifest))]
    return chosen


def _chosen(places: Sequence[Path], count: int) -> list[Path]:
    """The photographs named, and of each folder up to `count`."""
    from ..data.readers import iter_image_files
    from .drawing import spread_evenly

    chosen = []
    for place in places:
        if place.is_file():
            chosen.append(place)
            continue
        if not place.is_dir():
            raise DataError(f"{place}: no such photograph or folder.")
        found = list(iter_image_files(place))
        if not found:
            raise DataError(f"{place}: no image files.")
        chosen += [found[position] for position in spread_evenly(count, len(found))]
    return chosen
