"""One shard of labels: photographs in, score maps out, in closed parts that survive a kill.

Guarantees: every photograph of the manifest's shard has a row, unreadable ones with the reason; the marker appears last;
a job that is interrupted loses at most the part it was writing, and the rerun continues from the parts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ..core.errors import DataError, LabelError, TokenLabelError
from ..core.files import Lease, remove_leftovers, write_json
from ..core.identity import digest_of
from ..core.log import library_versions, logger
from ..data.images import UnreadableImageError
from ..data.pixels import normalise, read_view
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..labels.records import STATUS_OK, STATUS_UNREADABLE, LabelRows, concatenate_rows
from ..labels.shards import (
    ShardAttributes,
    assemble_parts,
    marker_of,
    read_marker,
    read_part,
    shard_file_name,
    verify_shard,
    write_part,
)
from .dense import Annotator, Preprocessing, build_annotator
from .labeling import MapBatch, label_batch


class _Photographs(Dataset[tuple[int, torch.Tensor, tuple[int, int], str]]):
    """Decoded and resized photographs of one shard; an unreadable one comes as zeros with its reason."""

    def __init__(
        self, manifest: Manifest, rows: NDArray[np.int64], machine: dict[str, Any], labels: dict[str, Any],
        preprocessing: Preprocessing,
    ) -> None:  # fmt: skip
        self._manifest, self._rows, self._labels = manifest, rows, labels
        self._source = manifest.open_source(machine)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, tuple[int, int], str]:
        row = int(self._rows[position])
        image_px = self._labels["image_px"]
        try:
            encoded = self._manifest.read(self._source, row)
            pixels, size = read_view(encoded, image_px, self._labels["view"], self._preprocessing.interpolation)
        except UnreadableImageError as error:
            return row, torch.zeros(3, image_px, image_px, dtype=torch.uint8), (0, 0), str(error)
        return row, pixels, size, ""


def _collate(
    items: list[tuple[int, torch.Tensor, tuple[int, int], str]],
) -> tuple[list[int], torch.Tensor, list[tuple[int, int]], list[str]]:
    rows, images, sizes, reasons = zip(*items, strict=True)
    return list(rows), torch.stack(images), list(sizes), list(reasons)


def annotate_shard(
    spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, shard: int, done: Path
) -> dict[str, Any]:
    """Writes one shard and its marker.

    Args:
        spec: the label spec.
        machine: roots, device, batch size.
        manifest: of the split to label.
        shard: which shard, from 0.
        done: the marker; the shard lies beside it.

    Returns:
        what the marker says.

    Raises:
        DataError: photographs do not fit the manifest, or one is unreadable and on_unreadable is `fail`.
        CheckpointError: the annotator cannot be built or fails its check.
    """
    started = time.monotonic()
    total = len(manifest.shard_digests)
    rows = manifest.rows_of_shard(shard)
    destination = done.with_name(shard_file_name(manifest.split, shard, total))
    parts_folder = done.with_suffix(".parts")
    with Lease(done.with_suffix(".lease")) as lease, _stopping_when_taken_over(lease):
        if marker := _finished(destination, digest_of(spec), manifest.shard_digests[shard]):
            logger.info("another job has finished this shard meanwhile")
            shutil.rmtree(parts_folder, ignore_errors=True)  # of a job that was killed just before it did this
            return marker
        remove_leftovers(destination)
        remove_leftovers(done)
        parts, labeled = _finished_parts(parts_folder)
        pending = np.array([row for row in rows if int(manifest.sample_id[row]) not in labeled], dtype=np.int64)
        if labeled:
            logger.info("resuming: %d of %d photographs are in finished parts", len(labeled), len(rows))
        annotator = build_annotator(spec["annotator"], Path(machine["weights_root"]))
        first_part = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        parts += _label_pending(spec, machine, manifest, pending, annotator, parts_folder, first_part, lease)
        grid = tuple(spec["annotator"]["grid"])
        attributes = ShardAttributes(
            annotator=done.parent.name.rsplit("-", 1)[0],
            architecture=spec["annotator"]["architecture"],
            weights_sha256=annotator.weights_sha256,
            image_px=spec["labels"]["image_px"],
            view=spec["labels"]["view"],
            preprocessing={
                "mean": list(annotator.preprocessing.mean),
                "std": list(annotator.preprocessing.std),
                "interpolation": annotator.preprocessing.interpolation,
            },
            num_classes=annotator.num_classes,
            rows=grid[0],
            cols=grid[1],
            k=spec["labels"]["k"],
            precision=spec["labels"]["precision"],
            split=manifest.split,
            shard=shard,
            total=total,
            manifest_digest=manifest.shard_digests[shard],
            labels_digest=digest_of(spec),
            libraries=library_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            storage=machine["label_storage"],
            score_step=spec["labels"]["score_step"],
        )
        lease.check()
        summary = assemble_parts(parts, destination, attributes, manifest.sample_id[rows])
        marker = marker_of(attributes, summary, time.monotonic() - started)
        lease.check()
        write_json(done, marker)
        shutil.rmtree(parts_folder, ignore_errors=True)
    return marker


@contextmanager
def _stopping_when_taken_over(lease: Lease) -> Iterator[None]:
    """Names the cause where a job that stood still finds its files moved by the one that took over."""
    try:
        yield
    except TokenLabelError:
        lease.check()
        raise


def _finished(destination: Path, labels_digest: str, manifest_digest: str) -> dict[str, Any] | None:
    """The marker of a shard that needs no work: of this spec and these photographs, and every byte as written."""
    try:
        marker = read_marker(destination)
        if (marker.get("labels_digest"), marker.get("manifest_digest")) != (labels_digest, manifest_digest):
            return None
        verify_shard(destination, marker["sha256"])
    except LabelError:
        return None
    return marker


def _finished_parts(folder: Path) -> tuple[list[Path], set[int]]:
    """Parts of earlier jobs and the sample ids in them; one that repeats another's photographs is removed."""
    parts: list[Path] = []
    labeled: set[int] = set()
    for part in sorted(folder.glob("part-*.h5")):
        identifiers = {int(identifier) for identifier in read_part(part).sample_id}
        if labeled & identifiers:  # written by a job that another had taken over from
            part.unlink()
            continue
        parts.append(part)
        labeled |= identifiers
    return parts, labeled


def _label_pending(
    spec: dict[str, Any],
    machine: dict[str, Any],
    manifest: Manifest,
    pending: NDArray[np.int64],
    annotator: Annotator,
    parts_folder: Path,
    first_part: int,
    lease: Lease,
) -> list[Path]:
    """Labels what no part holds yet; closes a part whenever `part_seconds` have passed. Returns the parts."""
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    annotator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dataset = _Photographs(manifest, pending, machine, spec["labels"], annotator.preprocessing)
    loader = DataLoader(
        dataset,
        batch_size=machine["annotate_batch"],
        num_workers=machine["workers"],
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    parts: list[Path] = []
    buffer: list[LabelRows] = []
    part_started = time.monotonic()

    def close_part() -> None:
        lease.check()
        part = first_part + len(parts)
        parts.append(parts_folder / f"part-{part:05d}.h5")
        write_part(parts[-1], concatenate_rows(buffer), machine["label_storage"])
        logger.info("part %d: %d photographs", part, sum(len(piece.sample_id) for piece in buffer))
        buffer.clear()

    checked = False
    for rows, images, sizes, reasons in loader:
        for row, reason in zip(rows, reasons, strict=True):
            if reason:
                _report_unreadable(manifest.path(row), reason, machine["dataset"]["on_unreadable"])
        images = images.to(device=device, non_blocking=True)
        readable = [index for index, reason in enumerate(reasons) if not reason]
        if readable and not checked:
            pixels = normalise(images[readable[:1]], annotator.preprocessing.mean, annotator.preprocessing.std)
            difference = annotator.check(pixels)
            logger.info("dense head: mean of the map equals the annotator's own logits to %.1e", difference)
            checked = True
        maps = label_batch(annotator, images, spec, precision)
        buffer.append(_rows_of(manifest, rows, maps, annotator.num_classes, sizes, reasons))
        if time.monotonic() - part_started > machine["part_seconds"]:
            close_part()
            part_started = time.monotonic()
    if buffer:
        close_part()
    return parts


def _report_unreadable(path: str, reason: str, on_unreadable: str) -> None:
    if on_unreadable == "fail":
        raise DataError(
            f"{path}: cannot be decoded ({reason}). Replace the photograph, or set dataset.on_unreadable: record."
        )
    logger.warning("%s: cannot be decoded (%s); recorded in the shard, training skips it", path, reason)


def _rows_of(
    manifest: Manifest,
    rows: list[int],
    maps: MapBatch,
    num_classes: int,
    sizes: list[tuple[int, int]],
    reasons: list[str],
) -> LabelRows:
    index_type = np.uint16 if num_classes <= 65536 else np.uint32
    readable = np.array([not reason for reason in reasons])
    blank = ~readable[:, None, None, None]
    tail = None if maps.tail is None else np.where(blank[..., 0], np.float16(0), maps.tail.cpu().numpy())
    return LabelRows(
        sample_id=manifest.sample_id[rows],
        scores=np.where(blank, np.float16(0), maps.scores.cpu().numpy()),
        classes=np.where(blank, 0, maps.classes.cpu().numpy()).astype(index_type),
        tail=tail,
        image_size=np.array(sizes, dtype=np.uint32),
        status=np.where(readable, STATUS_OK, STATUS_UNREADABLE).astype(np.uint8),
        reason=list(reasons),
    )
