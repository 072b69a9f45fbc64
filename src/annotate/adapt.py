"""Makes an annotator for classes that no pretrained network has: a linear probe on its features, or a run's fine-tuned network.

The probe: pooled features of every photograph, once, kept on disk; then a logistic regression in seconds to minutes. With folds
there are as many further heads, each fitted without one fold, and every training photograph is labeled by the head that has not
seen it; all other photographs by the head that was fitted to all. Guarantees that validation photographs are never fitted to,
and that the checkpoint is a plain one: timm loads annotator.safetensors as it is. Called by `adapt_command`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.files import Lease, atomic_path, sha256_of
from ..core.identity import digest_of
from ..core.log import logger
from ..data.manifest import Manifest
from ..data.pixels import normalise
from ..engine.device import autocast, choose_device, choose_precision, set_threads
from ..models import read_state_dict, save_weights
from ..models.pretrained import FOLD_HEADS, create_backbone
from ..models.weights import read_json_metadata
from .dense import ADAPTED_CHECKPOINT, Annotator, annotator_section, build_annotator
from .folds import fold_of
from .pipeline import BatchReader
from .probe import Head, choose_penalty, fit_head, held_out, measure
from .unreadable import UnreadableList

Assigned = tuple[np.ndarray[Any, np.dtype[np.uint64]], Tensor]  # sample ids, and the fold of each
CHUNK = 512  # photographs a file of features holds; a killed job loses at most as many
CROSS_VALIDATION = 3  # folds that choose the penalty, where the annotator itself has none


def adapt_annotator(
    spec: dict[str, Any], machine: dict[str, Any], manifests: dict[str, Manifest], done: Path, run_folder: Path | None
) -> dict[str, Any]:
    """Writes the checkpoint of an adapted annotator beside its marker.

    Args:
        spec: of stage adapt.
        machine: roots, device, batch size.
        manifests: train and val.
        done: the marker, which the caller writes.
        run_folder: seed folder of the fine-tuning run, for method finetune.

    Returns:
        what the marker says: accuracies and calibration.

    Raises:
        ConfigError: fewer than two classes.
        DataError: a class without a readable training photograph.
    """
    if len(manifests["train"].classes) < 2:
        raise ConfigError("annotate adapt: the data set has one class; there is nothing to tell apart.")
    set_threads(machine["threads"])
    if spec["adaptation"]["method"] == "finetune":
        return _adapt_by_run(spec, machine, manifests, done, run_folder)
    return _adapt_by_probe(spec, machine, manifests, done)


def _adapt_by_probe(
    spec: dict[str, Any], machine: dict[str, Any], manifests: dict[str, Manifest], done: Path
) -> dict[str, Any]:
    base = spec["adaptation"]["base"]
    annotator = build_annotator(base | {"image_px": spec["image_px"]}, Path(machine["weights_root"]))
    if annotator.own_token_head:
        raise CheckpointError(
            f"annotator {annotator.architecture}: has a token head of its own, which a probe would not change. Use adapt: finetune."
        )
    made_of = {
        "base": base,
        "weights_sha256": annotator.weights_sha256,
        **{key: spec[key] for key in ("dataset", "image_px", "view")},
    }
    cache = done.parents[2] / "features" / digest_of(made_of)
    features, classes, groups, samples = {}, {}, {}, {}
    for split, manifest in manifests.items():
        with Lease(cache / f"{split}.lease"):  # another annotator on the same base may be at it
            values, rows = _features_of(manifest, split, cache, annotator, spec, machine)
        samples[split] = manifest.sample_id[rows]
        features[split] = values
        classes[split] = torch.from_numpy(manifest.class_index[rows].astype(np.int64))
        groups[split] = manifest.group_id[rows].tolist()
    names = manifests["train"].classes
    counts = torch.bincount(classes["train"], minlength=len(names))
    if (counts == 0).any():
        raise DataError(f"class {names[int((counts == 0).nonzero()[0])]}: no readable training photograph. Add some.")
    folds = spec["adaptation"]["folds"]
    fold = fold_of(groups["train"], folds or CROSS_VALIDATION)
    for index, name in enumerate(names):
        if folds and len(set(fold[classes["train"] == index].tolist())) < 2:
            logger.warning(
                "class %s: all its photographs lie in one fold (too few, or all near-duplicates); the head that labels them has "
                "never seen the class", name,
            )  # fmt: skip
    if folds and len(set(fold.tolist())) < 2:
        raise DataError(
            "annotate adapt: all training photographs lie in one fold, so no head can be fitted without them. They are all taken "
            "for near-duplicates: set dataset.near_duplicates: false, or folds: 0."
        )
    penalty, losses = choose_penalty(features["train"], classes["train"], len(names), fold)
    logger.info(
        "penalty %g; held-out losses %s", penalty, ", ".join(f"{p:g}: {loss:.4f}" for p, loss in losses.items())
    )
    head = fit_head(features["train"], classes["train"], len(names), penalty)
    out_of_fold = torch.zeros(len(fold), len(names))
    heads = [head] * folds
    for outside, inside in held_out(fold):
        without = fit_head(features["train"][outside], classes["train"][outside], len(names), penalty)
        out_of_fold[inside] = without(features["train"][inside])
        if folds:
            heads[int(fold[inside][0])] = without
    facts = {
        "method": "probe",
        "penalty": penalty,
        "majority_top1": 100 * float(counts.max() / counts.sum()),
        "train_photographs": int(counts.sum()),
        "classes_with_one_photograph": int((counts == 1).sum()),
        "validation": _described(features["val"], classes["val"], head),
        "out_of_fold": dataclasses.asdict(measure(out_of_fold, classes["train"])),
    }
    _save(spec, annotator, head, heads, (samples["train"], fold), names, facts, done)
    return facts


def _described(features: Tensor, classes: Tensor, head: Head) -> dict[str, Any] | None:
    if not len(classes):
        logger.warning("no readable validation photograph: the annotator's accuracy is not known")
        return None
    return dataclasses.asdict(measure(head(features), classes))


def _save(
    spec: dict[str, Any], annotator: Annotator, head: Head, fold_heads: list[Head], assigned: Assigned,
    names: tuple[str, ...], facts: dict[str, Any], done: Path,
) -> None:  # fmt: skip
    backbone = annotator.backbone
    backbone.reset_classifier(len(names))
    found = backbone.get_classifier()
    for layer in found if isinstance(found, (tuple, list)) else [found]:  # DeiT averages two
        layer.weight.data.copy_(head.weight.view_as(layer.weight))
        layer.bias.data.copy_(head.bias)
    _write_checkpoint(spec, backbone, names, facts, done, fold_heads, assigned)


def _write_checkpoint(
    spec: dict[str, Any], backbone: nn.Module, names: tuple[str, ...], facts: dict[str, Any], done: Path,
    fold_heads: list[Head], assigned: Assigned | None = None,
) -> None:  # fmt: skip
    folds_sha256 = None
    if fold_heads and assigned is not None:
        layers = {
            "weight": torch.stack([head.weight for head in fold_heads]),
            "bias": torch.stack([head.bias for head in fold_heads]),
            "sample_id": torch.from_numpy(assigned[0].view(np.int64).copy()),
            "fold": assigned[1],
        }
        what = "heads by fold: weight (folds, classes, features), bias; and the fold of each training photograph"
        save_weights(layers, done.with_name(FOLD_HEADS), {"what": what})
        folds_sha256 = sha256_of(done.with_name(FOLD_HEADS))
    metadata = {
        "architecture": spec["annotator"]["architecture"],
        "classes": json.dumps(list(names)),
        "adaptation": json.dumps(facts),
        "spec": json.dumps(spec),
        "fold_heads_sha256": json.dumps(folds_sha256),
    }
    save_weights(backbone, done.with_name(ADAPTED_CHECKPOINT), metadata)


def _adapt_by_run(
    spec: dict[str, Any], machine: dict[str, Any], manifests: dict[str, Manifest], done: Path, run_folder: Path | None
) -> dict[str, Any]:
    """A fine-tuned student becomes an annotator: its token head is left out, its accuracy measured at the annotator's size."""
    if run_folder is None:
        raise ConfigError("annotate adapt: method finetune needs --run, the seed folder of the fine-tuning run.")
    averaged = run_folder / "model_ema.safetensors"
    weights = averaged if averaged.exists() else run_folder / "model.safetensors"
    prefix = "backbone."
    state = {
        name.removeprefix(prefix): value for name, value in read_state_dict(weights).items() if name.startswith(prefix)
    }
    names = manifests["train"].classes
    architecture = spec["annotator"]["architecture"]
    _check_same_pixels(read_json_metadata(weights, "spec")["model"]["architecture"].removeprefix("timm/"), architecture)
    backbone = create_backbone(architecture, len(names), spec["image_px"], state, str(weights))
    _write_checkpoint(spec, backbone, names, {}, done, [])
    annotator = build_annotator(annotator_section(spec["annotator"], spec["image_px"], done.parent), Path())
    logits, classes = [], []
    unreadable = UnreadableList(machine["dataset"], "val split", len(manifests["val"]))
    for images, rows in _batches(
        manifests["val"], np.arange(len(manifests["val"])), annotator, spec, machine, unreadable
    ):
        with torch.inference_mode():
            logits.append(annotator.backbone(images).float().cpu())
        classes.append(torch.from_numpy(manifests["val"].class_index[rows].astype(np.int64)))
    facts = {
        "method": "finetune",
        "run": str(run_folder),
        "validation": dataclasses.asdict(measure(torch.cat(logits), torch.cat(classes))) if classes else None,
    }
    _write_checkpoint(spec, annotator.backbone.cpu(), names, facts, done, [])
    return facts


def _check_same_pixels(student: str, annotator: str) -> None:
    """Refuses a student that was trained on pixels which are normalised otherwise than the annotator's.

    Raises:
        CheckpointError: timm's records of the two weights differ in mean or std.
    """
    import timm

    one, other = timm.get_pretrained_cfg(student), timm.get_pretrained_cfg(annotator)
    if one is not None and other is not None and (one.mean, one.std) != (other.mean, other.std):
        raise CheckpointError(
            f"annotate adapt: the student timm/{student} has mean {one.mean}, the base {annotator} has {other.mean}. Give both "
            "the same weights tag."
        )


def _features_of(
    manifest: Manifest, split: str, cache: Path, annotator: Annotator, spec: dict[str, Any], machine: dict[str, Any]
) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Pooled features of all readable photographs and their rows; those on disk are not computed again."""
    found: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
    position = {int(identifier): row for row, identifier in enumerate(manifest.sample_id.tolist())}
    for path in sorted(cache.glob(f"{split}-*.npz")):
        with np.load(path) as chunk:
            columns = zip(chunk["sample_id"].tolist(), chunk["size_bytes"].tolist(), chunk["features"], strict=True)
            for identifier, size_bytes, values in columns:
                row = position.get(identifier)
                if row is not None and size_bytes == manifest.size_bytes[row]:  # else the photograph has changed
                    found[row] = values
    pending = np.array([row for row in range(len(manifest)) if row not in found], dtype=np.int64)
    if len(found):
        logger.info("%s: features of %d photographs are there, %d to go", split, len(found), len(pending))
    unreadable = UnreadableList(machine["dataset"], f"{split} split", len(manifest))
    for start in range(0, len(pending), CHUNK):
        rows = pending[start : start + CHUNK]
        read: list[int] = []
        values = []
        for images, readable in _batches(manifest, rows, annotator, spec, machine, unreadable):
            values.append(annotator.pooled(images).float().cpu().numpy())
            read += readable.tolist()
        if read:
            found |= dict(zip(read, np.concatenate(values), strict=True))
            path = cache / f"{split}-{manifest.sample_id[rows[0]]:016x}-{time.time_ns()}.npz"
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file, sample_id=manifest.sample_id[read], size_bytes=manifest.size_bytes[read], features=np.concatenate(values)
                )  # fmt: skip
        logger.info("%s: features of %d of %d photographs", split, min(start + CHUNK, len(pending)), len(pending))
    rows = np.array(sorted(found), dtype=np.int64)
    width = annotator.classifier.in_features
    stacked = np.stack([found[row] for row in rows.tolist()]) if len(rows) else np.empty((0, width), np.float32)
    return torch.from_numpy(stacked), rows


def _batches(
    manifest: Manifest, rows: np.ndarray[Any, np.dtype[np.int64]], annotator: Annotator, spec: dict[str, Any],
    machine: dict[str, Any], unreadable: UnreadableList,
) -> Iterator[tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]]:  # fmt: skip
    """Normalised batches of the readable ones among some photographs, on the device, and their rows."""
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    annotator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocessing = annotator.preprocessing
    reader = BatchReader(
        manifest, machine, rows, batch=machine["annotate_batch"], threads=machine["workers"], image_px=spec["image_px"],
        view=spec["view"], interpolation=preprocessing.interpolation, pinned=device.type == "cuda",
    )  # fmt: skip
    for batch in reader:
        keep = [index for index, reason in enumerate(batch.reasons) if not reason]
        unreadable.add([manifest.path(row) for row in batch.rows], batch.reasons)
        if keep:
            images = normalise(batch.to(device)[keep], preprocessing.mean, preprocessing.std)
            with autocast(device, precision):
                yield images, np.array(batch.rows, dtype=np.int64)[keep]
