"""Lists a study's photographs again and says what changed; only the label shards concerned are then made again.

By hand: `tokenlabel refresh` in the folder that snakemake ran in, then `snakemake labels`. Finished runs and evaluations stay as
they are. A photograph is known by its path, class and size: one whose bytes changed at exactly the same size is not noticed; give
it another name, or delete the markers of its shard. Roots and formats are those of the last snakemake run (results/machine.json).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

from ..core.command import read_document, read_machine
from ..core.errors import DataError
from ..core.files import write_json
from ..core.identity import digest_of
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a refresh."""
    parser.add_argument(
        "study", type=Path, nargs="?", default=Path(), help="folder that holds results/ (default: this one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what changed and write nothing")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Refreshes every manifest of the study's data set.

    Raises:
        DataError: no study there, or no manifest of its data set.
        OutputError: a job is writing a shard whose photographs changed.
    """
    if not args.study.is_dir():
        raise DataError(f"{args.study}: no such folder. Give the folder that holds results/.")
    with contextlib.chdir(args.study):  # relative roots and class maps are relative to it, as in the workflow's jobs
        results = Path("results")
        machine = read_machine(results / "machine.json")
        dataset = read_document(results / "study.json", "the study's configuration")["dataset"]
        folders = [marker.parent for marker in sorted(results.glob("data/*/manifest.done"))]
        if not folders:
            raise DataError(f"{args.study / results}/data: no finished manifest to refresh. Run snakemake first.")
        fitting = 0
        for folder in folders:
            spec = read_document(folder / "spec.json", "the data spec")
            drawn = machine["dataset"]["val"] is None
            if [spec["name"], spec["release"]] != [dataset["name"], dataset["version"]] or drawn != (
                spec["val_fraction"] is not None
            ):
                logger.info("%s: left alone, not the data set of the last snakemake run (%s)", folder, dataset["name"])
                continue
            fitting += 1
            _refresh(folder, spec, machine, args.dry_run)
        if not fitting:
            raise DataError(f"{args.study / results}/data: no manifest of {dataset['name']}. Run snakemake first.")
    return 0


def _refresh(folder: Path, spec: dict[str, Any], machine: dict[str, Any], dry_run: bool) -> None:
    from .manifest import build_manifests, load_manifest, save_manifests
    from .refresh import (
        adapted_annotators_of,
        check_not_held,
        compare_manifests,
        labels_of,
        moved_photographs,
        remove_parts,
        shards_to_redo,
        unfinished_shards,
    )  # fmt: skip

    started = time.monotonic()
    manifests = build_manifests(spec, machine)
    differences = {
        split: compare_manifests(load_manifest(folder, split), manifest) for split, manifest in manifests.items()
    }
    changed = any(difference.any for difference in differences.values())
    counts = ", ".join(f"{len(manifest):,} {split}" for split, manifest in manifests.items())
    logger.info("%s: %s photographs, %s", folder, counts, "changed" if changed else "nothing changed")
    for difference in differences.values():
        for line in difference.lines():
            logger.info("%s", line)
    moved = list(moved_photographs(differences["train"], differences["val"]))
    if moved:
        logger.info("  of these, moved across the validation split: %s", ", ".join(moved[:10]))
    labels = labels_of(folder.parents[1], spec)
    stale = {place: shards_to_redo(place, manifests) for place in labels}
    if changed and not dry_run:
        unfinished = [marker for place in labels for marker in unfinished_shards(place, differences)]
        check_not_held(unfinished)
        remove_parts(unfinished)
        summary = save_manifests(folder, manifests)
        write_json(
            folder / "manifest.done", {"digest": digest_of(spec), "seconds": time.monotonic() - started, **summary}
        )
    for place, markers in stale.items():
        if markers:
            logger.info("%s: to be made again: %s", place, ", ".join(marker.stem for marker in markers))
    if any(stale.values()):
        logger.info("snakemake labels makes these shards again and no others; finished runs stay as they are.")
    if differences["train"].old.classes != differences["train"].new.classes:
        for marker in adapted_annotators_of(folder.parents[1], spec):
            logger.info("%s: adapted to other classes; snakemake adapts it anew", marker.parent)
            if not dry_run:
                marker.unlink()
    if differences["val"].any:
        logger.info("Evaluations stay as measured before; to measure one again, delete its evaluation-*.json.")
    if dry_run and changed:
        logger.info("Nothing was written (--dry-run).")
