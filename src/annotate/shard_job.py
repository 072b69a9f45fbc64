"""One shard of labels: photographs in, score maps out, in closed parts that survive a kill.

Guarantees: every photograph of the manifest's shard has a row, unreadable ones with the reason; the marker appears last; a job
that is interrupted loses at most the part it was filling, and the rerun continues from the parts with the same batches.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import LabelError, TokenLabelError
from ..core.files import Lease, read_json, remove_leftovers, write_json, write_json_if_changed
from ..core.identity import digest_of
from ..core.log import library_versions, logger
from ..core.markers import read_kept, write_marker
from ..data.images import UnreadableImageError
from ..data.manifest import Manifest
from ..data.pixels import normalise, read_view
from ..data.readers import ByteSource
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.stopping import stopping_by_signal
from ..labels.records import STATUS_UNREADABLE
from ..labels.shards import (
    ShardAssembly,
    ShardAttributes,
    marker_of,
    read_marker,
    read_part,
    shard_file_name,
    verify_shard,
)
from .dense import Annotator, annotator_section, build_annotator
from .folds import heads_of_rows
from .labeling import label_batch, label_padded
from .pipeline import BatchReader, PartWriter, PhotographBatch, rows_of_batch
from .progress import Progress
from .unreadable import Unreadable, UnreadableList

SECONDS_TO_STOP = 8.0  # of the ten that a job may take to end


def annotate_shard(
    spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, shard: int, done: Path,
    annotator_folder: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes one shard and its marker.

    Args:
        spec: the label spec.
        machine: roots, device, batch size.
        manifest: of the split to label.
        shard: which shard, from 0.
        done: the marker; the shard lies beside it.
        annotator_folder: of an annotator that was adapted to the data set.

    Returns:
        what the marker says.

    Raises:
        DataError: photographs do not fit the manifest, or too many of them are unreadable.
    """
    started = time.monotonic()
    total = len(manifest.shard_digests)
    rows = manifest.rows_of_shard(shard)
    destination = done.with_name(shard_file_name(manifest.split, shard, total))
    parts_folder = done.with_suffix(".parts")
    with Lease(done.with_suffix(".lease")) as lease, _stopping_when_taken_over(lease):
        if marker := _finished(destination, done, digest_of(spec), manifest.shard_digests[shard]):
            logger.info("this shard is finished already")
            shutil.rmtree(parts_folder, ignore_errors=True)  # of a job that was killed just before it did this
            return marker
        remove_leftovers(destination)
        remove_leftovers(done)
        unreadable = UnreadableList(machine["dataset"], str(done), len(rows))
        section = annotator_section(spec["annotator"], spec["labels"]["image_px"], annotator_folder)
        annotator = build_annotator(section, Path(machine["weights_root"]))
        annotator.check_classes(manifest.classes)
        _drop_parts_of_others(parts_folder, {"spec": digest_of(spec), "weights_sha256": annotator.weights_sha256})
        parts, labeled = _finished_parts(parts_folder, manifest, machine, unreadable)
        if labeled:
            logger.info("resuming: %d of %d photographs are in finished parts", len(labeled), len(rows))
        pending = np.array([row for row in rows if int(manifest.sample_id[row]) not in labeled], dtype=np.int64)
        device = choose_device(machine["device"])
        precision = choose_precision(machine["precision"], device)
        set_threads(machine["threads"])
        name = done.parent.name.rsplit("-", 1)[0]
        attributes = _attributes(spec, machine, manifest, shard, annotator, name, precision)
        with ShardAssembly(destination, attributes, manifest.sample_id[rows]) as assembly:
            writer = PartWriter(assembly, parts, parts_folder, machine["part_seconds"], lease.check)
            facts = _label_pending(
                spec, machine, manifest, pending, annotator, lease, unreadable, writer, done, device, precision
            )
            lease.check()
            finishing = time.perf_counter()
            summary = assembly.finish()
        facts["finishing_s"] = round(time.perf_counter() - finishing, 3)
        marker = marker_of(attributes, summary, time.monotonic() - started)
        marker |= {"job": facts, "unreadable_photographs": [vars(photograph) for photograph in unreadable.found]}
        lease.check()
        table = "unreadable.csv" if manifest.split == "train" else f"unreadable-{manifest.split}.csv"
        unreadable.write_table(done.parent / table, shard, done, partial(write_marker, done, marker))
        shutil.rmtree(parts_folder, ignore_errors=True)
        said = {"shard": done.name, "images": marker["images"], "unreadable": marker["unreadable"], **facts}
        logger.info("summary %s", json.dumps(said))
    return marker


@contextmanager
def _stopping_when_taken_over(lease: Lease) -> Iterator[None]:
    """Names the cause where a job that stood still finds its files moved by the one that took over."""
    try:
        yield
    except TokenLabelError:
        lease.check()
        raise


def _finished(destination: Path, done: Path, labels_digest: str, manifest_digest: str) -> dict[str, Any] | None:
    """The marker of a shard that needs no work: of this spec and these photographs, and every byte as written.

    One that Snakemake removed is written again.
    """
    kept = None if done.exists() else read_kept(done)
    try:
        marker = kept or read_marker(destination)
        if (marker.get("labels_digest"), marker.get("manifest_digest")) != (labels_digest, manifest_digest):
            return None
        verify_shard(destination, marker["sha256"])
    except (LabelError, KeyError):
        return None
    if kept:
        write_json(done, marker)
    return marker


def _drop_parts_of_others(folder: Path, made_by: dict[str, str]) -> None:
    """Removes parts that other weights or settings made; notes in the folder whose the next ones are."""
    note = folder / "made_by.json"
    if folder.is_dir() and any(folder.glob("part-*.h5")):
        try:
            found = read_json(note)
        except (OSError, ValueError):
            found = None
        if found != made_by:
            logger.warning("%s: parts of other weights or settings are done anew", folder)
            shutil.rmtree(folder)
    write_json_if_changed(note, made_by)


def _finished_parts(
    folder: Path, manifest: Manifest, machine: dict[str, Any], unreadable: UnreadableList
) -> tuple[list[Path], set[int]]:
    """Parts of earlier jobs and the sample ids in them.

    One that repeats another's photographs is removed; so is one whose unreadable photographs can be read by now, else a disk
    that was away for a minute would leave holes in the labels.
    """
    parts: list[Path] = []
    labeled: set[int] = set()
    source = manifest.open_source(machine)
    for part in sorted(folder.glob("part-*.h5")):
        rows = read_part(part)
        identifiers = set(rows.sample_id.tolist())
        if labeled & identifiers:  # written by a job that another had taken over from
            part.unlink()
            continue
        places = np.flatnonzero(rows.status == STATUS_UNREADABLE).tolist()
        broken = [int(np.flatnonzero(manifest.sample_id == rows.sample_id[place])[0]) for place in places]
        if recovered := [manifest.path(row) for row in broken if _is_readable(manifest, source, row)]:
            logger.info("%s can be read again: %s is done anew", recovered[0], part.name)
            part.unlink()
            continue
        parts.append(part)
        labeled |= identifiers
        for row, place in zip(broken, places, strict=True):
            unreadable.found.append(Unreadable(manifest.path(row), rows.reason[place]))
    return parts, labeled


def _is_readable(manifest: Manifest, source: ByteSource, row: int) -> bool:
    try:
        read_view(manifest.read(source, row), 16, "squash", "bicubic")
    except UnreadableImageError:
        return False
    return True


def _label_pending(
    spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, pending: np.ndarray[Any, np.dtype[np.int64]],
    annotator: Annotator, lease: Lease, unreadable: UnreadableList, writer: PartWriter, done: Path,
    device: torch.device, precision: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """Labels what no part holds yet; returns what the job did with its time."""
    annotator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings, preprocessing = spec["labels"], annotator.preprocessing
    reader = BatchReader(
        manifest, machine, pending, batch=machine["annotate_batch"], threads=machine["workers"],
        image_px=settings["image_px"], view=settings["view"], interpolation=preprocessing.interpolation,
        pinned=device.type == "cuda",
    )  # fmt: skip
    shard_images = unreadable.shard_images
    progress = Progress(done.stem, shard_images, shard_images - len(pending), len(unreadable.found))

    def finish(signal_name: str) -> str:
        writer.stop(SECONDS_TO_STOP)
        lease.release()
        kept = shard_images - len(pending) + writer.images
        return (
            f"{done}: stopped by {signal_name}; {kept:,} of {shard_images:,} photographs are labeled and kept. The same "
            "command goes on from there."
        )

    fold_of_row = heads_of_rows(manifest, annotator)
    started = time.perf_counter()
    reading_s = computing_s = 0.0
    checked = False
    with stopping_by_signal(finish), progress:
        try:
            before = time.perf_counter()
            for batch in reader:
                reading_s += time.perf_counter() - before
                new = unreadable.add([manifest.path(row) for row in batch.rows], batch.reasons)
                before = time.perf_counter()
                images = batch.to(device)
                if not checked and new < len(batch.rows):
                    checked = True
                    _check_annotator(annotator, images, batch)
                    if machine["annotate_compile"]:  # CUDA graphs on a GPU
                        annotator.compile(mode="reduce-overhead" if device.type == "cuda" else "default", dynamic=False)
                fold = None
                if fold_of_row is not None:
                    fold = fold_of_row[batch.rows].to(device)
                if machine["annotate_compile"]:
                    maps = label_padded(annotator, images, machine["annotate_batch"], spec, precision, fold)
                else:
                    maps = label_batch(annotator, images, spec, precision, fold)
                computing_s += time.perf_counter() - before
                held = PhotographBatch(batch.rows, batch.images[:0], batch.sizes, batch.reasons)  # without the buffer
                writer.put(partial(rows_of_batch, manifest, held, maps, annotator.num_classes))
                progress.add(len(batch.rows), new)
                before = time.perf_counter()
            writer.close()
        except BaseException:
            writer.abandon()
            raise
    elapsed_s = time.perf_counter() - started
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compute_precision": str(precision).removeprefix("torch."),
        "resumed": shard_images - len(pending),
        "images_per_s": round(len(pending) / max(elapsed_s, 1e-9), 2),
        "seconds": round(elapsed_s, 3),
        # of the main thread: what did not overlap with the forward pass
        "waiting_for_photographs_s": round(reading_s, 3),
        "forward_s": round(computing_s, 3),
        "waiting_for_writer_s": round(writer.waiting_s, 3),
        # of the threads beside it
        "decoding_s": round(reader.decoding_s, 3),
        "fetching_s": round(writer.fetching_s, 3),
        "writing_s": round(writer.writing_s, 3),
        "assembling_s": round(writer.assembling_s, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _check_annotator(annotator: Annotator, images: torch.Tensor, batch: PhotographBatch) -> None:
    first = next(index for index, reason in enumerate(batch.reasons) if not reason)
    pixels = normalise(images[first : first + 1], annotator.preprocessing.mean, annotator.preprocessing.std)
    kind, difference = annotator.check(pixels)
    logger.info("dense head: %s, equals the annotator's own logits to %.1e", kind, difference)


def _attributes(
    spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, shard: int, annotator: Annotator, name: str,
    precision: torch.dtype,
) -> ShardAttributes:  # fmt: skip
    settings, preprocessing = spec["labels"], annotator.preprocessing
    grid = spec["annotator"]["grid"]
    return ShardAttributes(
        annotator=name,
        architecture=spec["annotator"]["architecture"],
        weights_sha256=annotator.weights_sha256,
        image_px=settings["image_px"],
        view=settings["view"],
        preprocessing={
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "flip": settings["flip"],
            "scales": settings["scales"],
        },
        num_classes=annotator.num_classes,
        rows=grid[0],
        cols=grid[1],
        k=settings["k"],
        precision=settings["precision"],
        split=manifest.split,
        shard=shard,
        total=len(manifest.shard_digests),
        manifest_digest=manifest.shard_digests[shard],
        labels_digest=digest_of(spec),
        libraries=library_versions() | {"compute_precision": str(precision).removeprefix("torch.")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        storage=machine["label_storage"],
        score_step=settings["score_step"],
    )
