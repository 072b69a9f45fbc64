"""Measures one trained segmenter on the validation scenes, single and multi-scale: a JSON document, a CSV, a page of pictures.

The CSV has a line for every class. The page shows scenes that are evenly spread over the split: photograph, mask, and the classes
that the segmenter gives its pixels at several scales. The document is written last: who finds it finds all three.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.command import add_job_arguments, read_document, read_machine
from ..core.errors import CheckpointError
from ..core.files import atomic_path, write_json, write_text
from ..core.identity import digest_of
from ..core.log import job_log, logger

if TYPE_CHECKING:
    from ..data.scenes import SceneManifest
    from .measures import Confusion

SHOWN_SCENES = 6  # on the page
DECIMALS = 6  # of a percentage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an evaluation job."""
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the scenes' manifest")
    parser.add_argument("--run", type=Path, required=True, dest="run_folder", help="seed folder of the run to measure")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="JSON file to write; .classes.csv and .png of the same stem lie beside it",
    )


def run(args: argparse.Namespace) -> int:
    """Measures and writes the results."""
    spec, machine = read_document(args.spec, "the testing's spec"), read_machine(args.machine)
    from ..data.scenes import load_scene_manifest

    manifest = load_scene_manifest(args.manifest, "val")
    manifest.open(machine)
    started = time.monotonic()
    title = f"evaluate {args.run_folder}"
    with job_log(title, digest=digest_of(spec), seed=None, device=machine["device"]) as counts:
        trained = read_document(args.run_folder / "done.json", "the run's marker")
        found = _measure(args.run_folder, spec, machine, manifest, args.out.with_suffix(".png"))
        counts["images"] = found["images"]
        for name in ("single", "multi"):
            miou, accuracy = ("none" if share is None else f"{share:.2f} %" for share in found[name].values())
            logger.info("%s scale: mIoU %s, pixel accuracy %s of %d scenes", name, miou, accuracy, found["images"])
        write_text(classes_file(args.out), classes_csv(found["classes"]))
        write_json(
            args.out,
            {
                "digest": digest_of(spec),
                "run": trained["digest"],
                "seed": trained["seed"],
                **found,
                "train_seconds": trained["seconds"],
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    return 0


def classes_file(document: Path) -> Path:
    """Place of the classes' IoU beside an evaluation's JSON document."""
    return document.with_suffix(".classes.csv")


def classes_csv(classes: list[dict[str, Any]]) -> str:
    """The classes as CSV: name, pixels in the masks, IoU in percent at one and at several scales, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pixels", "iou", "iou_multi"])
    for line in classes:
        shares = ["" if line[name] is None else f"{line[name]:.4f}" for name in ("iou", "iou_multi")]
        writer.writerow([line["name"], line["pixels"], *shares])
    return text.getvalue()


def _measure(
    run_folder: Path, spec: dict[str, Any], machine: dict[str, Any], manifest: SceneManifest, page: Path
) -> dict[str, Any]:
    """Numbers of the document; draws the page."""
    from ..engine.device import choose_device, choose_precision, set_threads
    from ..models import count_parameters
    from ..models.segmentation import load_segmenter
    from .pages import ScenePage
    from .testing import Look, ResizedScenes, measure_scenes

    loaded = load_segmenter(run_folder, use_ema=spec["use_ema"])
    if loaded.classes != manifest.classes:
        raise CheckpointError(
            f"{run_folder}: its {_few(loaded.classes)} are not the scenes' {_few(manifest.classes)}. Give --manifest, "
            "the folder of the manifest that it was trained with."
        )
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    parameters = count_parameters(loaded.model)
    single, multi = Look.of_spec(spec)
    pictures = ScenePage(manifest, SHOWN_SCENES)
    measured = measure_scenes(
        loaded.model, ResizedScenes(manifest, machine, single), [single] if single == multi else [single, multi],
        machine | {"micro_batch": machine["segment_micro_batch"]}, device=device, precision=precision, seen=pictures.add,
    )  # fmt: skip
    with atomic_path(page) as temporary:
        pictures.drawn().save(temporary, format="PNG")
    first, last = measured.confusions[0], measured.confusions[-1]
    return {
        "single": _summary(first),
        "multi": _summary(last),
        "images": measured.images,
        "skipped": measured.skipped,
        "parameters_m": parameters / 1e6,
        "classes": [
            {"name": name, "pixels": pixels, "iou": _known(one), "iou_multi": _known(several)}
            for name, pixels, one, several in zip(
                manifest.classes, first.class_pixels.tolist(), first.class_iou.tolist(), last.class_iou.tolist(), strict=True
            )
        ],
    }  # fmt: skip


def _few(classes: tuple[str, ...]) -> str:
    """How many classes, and the first of them."""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def _summary(confusion: Confusion) -> dict[str, float | None]:
    return {"miou": _known(confusion.miou), "pixel_accuracy": _known(confusion.pixel_accuracy)}


def _known(share: float) -> float | None:
    """A percentage as JSON holds it; None for one of nothing."""
    return None if math.isnan(share) else round(share, DECIMALS)
