"""Checks finished labels by computing a sample anew, or with --classes-only against the class order; exit code 1: no match.

By hand: `tokenlabel annotate check results/labels/lite0-1a2b3c4d --manifest results/data`. Labels from elsewhere, which have no
spec.json beside them, need --architecture and --weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.command import read_document, read_machine
from ..core.errors import ConfigError
from ..core.log import logger

if TYPE_CHECKING:
    from ..data.manifest import Manifest
    from ..labels import LabelStore

IMAGES, IMAGES_CLASSES_ONLY = 50, 20_000  # of a thousand classes, some twenty of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a check."""
    parser.add_argument("labels", type=Path, help="folder of label shards")
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--split", default="train", help="labeled split (default: %(default)s)")
    parser.add_argument("--classes-only", action="store_true", help="check the class order, from manifest and labels")
    parser.add_argument(
        "--images", type=int, default=None,
        help=f"how many photographs at most (default: {IMAGES}, of the class order {IMAGES_CLASSES_ONLY})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--machine", type=Path, default=None, help="default: machine.json two folders above the labels")
    parser.add_argument("--annotator", type=Path, default=None, help="folder of an annotator adapted to the data set")
    parser.add_argument("--architecture", default=None, help="timm name (default: that in spec.json beside the labels)")
    parser.add_argument("--weights", default=None, help="hub, file:NAME or package:NAME (default: as in spec.json)")
    parser.add_argument(
        "--weights-naming", choices=("timm", "efficientnet_pytorch"), default=None, help="(default: as in spec.json)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and the verdict; 0: matches, 1: does not.

    Raises:
        ConfigError: no photographs asked for, or nothing says which annotator.
        CheckpointError: the annotator's weights are missing or another network's.
        DataError: manifest, machine settings or photographs are missing.
        LabelError: the labels are missing, damaged or of other photographs.
    """
    if args.images is None:
        args.images = IMAGES_CLASSES_ONLY if args.classes_only else IMAGES
    if args.images < 1:
        raise ConfigError(f"annotate check: --images is {args.images}, expected at least 1.")
    from ..data.manifest import load_manifest
    from ..labels import LabelStore

    manifest = load_manifest(args.manifest, args.split)
    store = LabelStore(args.labels, args.split)
    return _check_classes(args, store, manifest) if args.classes_only else _check_numbers(args, store, manifest)


def _check_classes(args: argparse.Namespace, store: LabelStore, manifest: Manifest) -> int:
    from .check import check_class_order

    found = check_class_order(store, manifest, args.images, args.seed)
    logger.info("%s: %d photographs", args.labels, found.images)
    rows = {
        "own class in any cell": found.any_cell,
        "own class in pooled top 5": found.pooled,
        "chance": found.chance,
        "own classes shuffled": found.shuffled,
        **found.fits,
    }
    for name, share in rows.items():
        logger.info("  %6.3f  %s", share, name)
    logger.info("%s", found.verdict)
    return 0 if found.matches else 1


def _check_numbers(args: argparse.Namespace, store: LabelStore, manifest: Manifest) -> int:
    section = _annotator_section(args, store)
    machine = read_machine(args.machine or args.labels.parent.parent / "machine.json")
    manifest.open_source(machine)  # a missing data root shall be said before torch loads
    from ..engine.device import choose_device, set_threads
    from .dense import annotator_section, build_annotator
    from .recomputation import recompute

    set_threads(machine["threads"])
    full = annotator_section(section, store.attributes.image_px, args.annotator)
    annotator = build_annotator(full, Path(machine["weights_root"])).to(choose_device(machine["device"]))
    annotator.check_classes(manifest.classes)
    found = recompute(store, manifest, machine, annotator, args.images, args.seed)
    logger.info("%s: %d photographs computed anew by %s", args.labels, found.images, annotator.architecture)
    logger.info("  %6d  labels differ", len(found.differing))
    logger.info("  %6.3f  cells with the same best class", found.top1)
    # in standard deviations of a photograph's logits
    logger.info(
        "  %6.4f  largest difference of a label, median (allowed %g and rounding)", found.largest, found.tolerance[0]
    )
    logger.info("  %6.4f  rms difference of a label, median (allowed %g and rounding)", found.rms, found.tolerance[1])
    for path in found.differing[:5]:
        logger.info("          differs: %s", path)
    logger.info("%s", found.verdict)
    return 0 if found.matches else 1


def _annotator_section(args: argparse.Namespace, store: LabelStore) -> dict[str, Any]:
    """The annotator as spec.json beside the shards says, unless the command line does."""
    path = args.labels / "spec.json"
    said: dict[str, Any] = read_document(path, "the label spec")["annotator"] if path.exists() else {}
    if not said and args.architecture is None:
        raise ConfigError(
            f"annotate check: no spec.json in {args.labels}, so nothing says which annotator made the labels. Give --architecture "
            "and --weights."
        )
    if (said.get("adaptation") or {}) and args.annotator is None and args.weights is None:
        raise ConfigError(
            "annotate check: the annotator was adapted to the data set. Give its folder: --annotator results/annotators/NAME."
        )
    architecture = args.architecture or said["architecture"]
    weights = args.weights or said.get("weights", "hub")
    naming = args.weights_naming or said.get("weights_naming", "timm")
    # other weights shall be a verdict, not an error: their digest is compared with the shards'
    return said | {
        "architecture": architecture, "weights": weights, "weights_naming": naming, "weights_sha256": None,
        "num_classes": store.num_classes, "grid": list(store.grid),
    }  # fmt: skip
