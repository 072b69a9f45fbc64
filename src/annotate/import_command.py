"""Brings labels of the released layout (one .pt a photograph) into shards, without executing anything in them.

    tokenlabel annotate import label_top5_train_nfnet.tar --manifest results/data/imagenet-5e6f7a8b \\
        --out results/labels/nfnet_f6-released --annotator-name nfnet_f6 \\
        --detect --annotator results/labels/efficientnet_b3-9c0d1e2f/spec.json --machine results/machine.json

RELEASED is a folder, an uncompressed tar or a zip of CLASS/NAME.pt files, float16 (2, k, H, W): logits and class ids. Nobody
but their maker knows which way round the maps lie and which part of the photograph they cover: say it with --axes and --view,
or let --detect find out by comparing a sample with an annotator of your own; it prints the scores and refuses where the answer
is unclear. Shards that are finished are not read again, so an interrupted import goes on where it was. Train on the result by
the Python API: LabelStore(FOLDER, split="train").
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..core.command import read_document, read_machine
from ..core.errors import ConfigError
from ..core.log import logger
from ..core.seeds import derived_seed
from ..data.manifest import load_manifest
from ..labels.released import ReleasedTree, check_class_count

ANNOTATOR_KEYS = ("architecture", "weights", "weights_sha256", "weights_naming", "num_classes")
FEWEST = 10  # photographs with which a sign test can reach p < 0.001
STRIDE_PX = 32  # of the classifiers that make label maps; for the default of --image-px


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an import."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "released", type=Path, metavar="RELEASED", help="folder, uncompressed tar or zip of CLASS/NAME.pt"
    )
    parser.add_argument(
        "--manifest", type=Path, required=True, help="folder of the data set's manifest, results/data/NAME-DIGEST"
    )
    parser.add_argument("--split", default="train", help="split that the labels are of (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the shards; with --detect it may be left out: then only the answer is printed",
    )
    parser.add_argument(
        "--annotator-name", default="released", help="what the shards call the labels' maker (default: %(default)s)"
    )
    parser.add_argument(
        "--axes", choices=("right", "transposed"), help="right: axis 2 of a file runs down, axis 3 right"
    )
    parser.add_argument(
        "--view",
        choices=("squash", "centre_crop"),
        help="squash: the map covers the whole photograph; centre_crop: its largest centred "
        "square, as the released generator's do (a crop_pct below 1 is neglected)",
    )
    parser.add_argument(
        "--image-px", type=int, help="side of what the labels' maker saw (default: 32 a column, 576 for 18)"
    )
    parser.add_argument(
        "--on-missing",
        choices=("fail", "record"),
        default="fail",
        help="photographs without a file: refuse, or record as pending, which training skips (default: %(default)s)",
    )
    parser.add_argument(
        "--machine",
        type=Path,
        help="machine.json, says where the photographs lie: for --detect, and to record their sizes in the shards, "
        "which --view centre_crop needs",
    )
    parser.add_argument("--detect", action="store_true", help="find out axes and view; needs --annotator and --machine")
    parser.add_argument(
        "--annotator",
        type=Path,
        metavar="SPEC",
        help="spec.json of a label job (results/labels/NAME-DIGEST), whose annotator --detect compares with",
    )
    parser.add_argument(
        "--sample", type=int, default=32, help="photographs that --detect looks at (default: %(default)s)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Imports the labels, or only prints what --detect finds."""
    _check_arguments(args)
    manifest = load_manifest(args.manifest, args.split)
    machine = read_machine(args.machine) if args.machine else None
    source = manifest.open_source(machine) if machine else None
    check_class_count(len(manifest.classes), f"manifest {args.manifest}")
    from .released_import import check_missing, find_released, import_shard

    labels = find_released(ReleasedTree(args.released), manifest)
    check_missing(labels, args.on_missing)
    image_px = args.image_px or STRIDE_PX * labels.shape[1]
    axes, view, decided = args.axes, args.view, "given"
    if args.detect:
        assert machine is not None
        assert source is not None
        axes, view = _detect(args, labels, machine, source, image_px)
        decided = f"detected with {args.annotator}"
        if args.out is None:
            return 0
    if view == "centre_crop" and source is None:
        raise ConfigError(
            "a map of the centre crop is placed by its photograph's height and width: give --machine, so that they are recorded."
        )
    about = {"annotator": args.annotator_name, "axes": axes, "view": view, "image_px": image_px, "decided": decided}
    total = len(manifest.shard_digests)
    pending = 0
    for shard in range(total):
        summary = import_shard(labels, shard, args.out, about, source)
        pending += summary.pending
        logger.info("shard %d of %d: %d photographs, %d pending", shard, total, summary.images, summary.pending)
    logger.info(
        "%s: %d photographs, %d pending; axes %s, view %s (%s)", args.out, len(manifest), pending, axes, view, decided
    )
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.detect and (args.axes or args.view):
        raise ConfigError("--detect finds out --axes and --view; give either --detect or both of them.")
    if args.detect and not (args.annotator and args.machine):
        raise ConfigError("--detect needs --annotator SPEC to compare with and --machine FILE for the photographs.")
    if not args.detect and not (args.axes and args.view):
        raise ConfigError("--axes and --view are not known from the files: give both, or --detect.")
    if args.out is None and not args.detect:
        raise ConfigError("--out FOLDER is missing: where shall the shards go?")
    if args.annotator and not args.detect:
        raise ConfigError("--annotator is what --detect compares with; give --detect too, or leave it out.")
    if args.detect and args.sample < FEWEST:
        raise ConfigError(
            f"--sample {args.sample}: fewer than {FEWEST} photographs cannot decide; p < 0.001 is asked for."
        )
    if args.sample < 1 or (args.image_px is not None and args.image_px < 1):
        raise ConfigError("--sample and --image-px must be at least 1.")


def _detect(
    args: argparse.Namespace, labels: Any, machine: dict[str, Any], source: Any, image_px: int
) -> tuple[str, str]:
    """Axes and view as a sample of photographs tells them; prints the scores either way.

    Raises:
        LabelError: unclear.
        CheckpointError: the annotator cannot be built.
    """
    spec = read_document(args.annotator, "the label spec")
    from ..data.images import UnreadableImageError, decode_image
    from ..engine.device import choose_device, set_threads
    from .dense import build_annotator
    from .detect import UnclearError, decide, gather_evidence

    settings = spec.get("annotator", spec)  # of a label job's spec, or that section alone
    missing = [name for name in ANNOTATOR_KEYS if name not in settings]
    if missing:
        raise ConfigError(
            f"{args.annotator}: says no {' and no '.join(missing)} of an annotator. Give spec.json of a label job, "
            "results/labels/NAME-DIGEST/spec.json."
        )
    manifest = labels.manifest
    if settings["num_classes"] != len(manifest.classes):
        raise ConfigError(
            f"{args.annotator}: its annotator has {settings['num_classes']} classes, the manifest {len(manifest.classes)}. "
            "--detect needs an annotator of the same classes."
        )
    device = choose_device(machine["device"])
    set_threads(machine["threads"])
    annotator = build_annotator(settings, Path(machine["weights_root"])).to(device)
    rows = np.flatnonzero(labels.present)
    order = np.random.default_rng(derived_seed("detect", args.split)).permutation(rows)
    pictures: list[Any] = []
    maps: list[Any] = []
    for row in order.tolist():
        if len(pictures) == args.sample:
            break
        try:
            picture = decode_image(manifest.read(source, row))
        except UnreadableImageError:
            continue
        pictures.append(picture)
        maps.append(labels.read(row))
    try:
        answer = decide(gather_evidence(annotator, pictures, maps, image_px, device))
    except UnclearError as error:
        _say(f"--detect on {len(pictures)} photographs against {settings['architecture']}:\n{error.table}")
        raise
    _say(f"--detect on {len(pictures)} photographs against {settings['architecture']}:")
    for line in answer.table:
        _say(line)
    _say(f"axes {answer.axes}, view {answer.view}")
    return answer.axes, answer.view


def _say(line: str) -> None:
    print(line)  # noqa: T201
