"""Makes an annotator for classes that no pretrained network has: a linear probe on its features, or a run's fine-tuned network.

The probe: pooled features of every photograph, once, kept on disk; then a logistic regression in seconds to minutes. With folds
there are as many further heads, each fitted without one fold, and every training photograph is labeled by the head that has not
seen it; all other photographs by the head that was fitted to all. Guarantees that validation photographs are never fitted to,
and that the checkpoint is a plain one: timm loads annotator.safetensors as it is. Called by `adapt_command`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.files import atomic_path, remove_leftovers, sha256_of
from ..core.identity import digest_of
from ..core.log import logger
from ..data.manifest import Manifest
from ..data.pixels import normalise
from ..engine.device import autocast, choose_device, choose_precision, set_threads
from ..models import read_state_dict, save_weights
from ..models.pretrained import FOLD_HEADS, create_backbone
from .dense import ADAPTED_CHECKPOINT, Annotator, build_annotator
from .folds import fold_of
from .pipeline import BatchReader
from .probe import Head, choose_penalty, fit_head, held_out, measure

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
    cache = (
        done.parents[2]
        / "features"
        / digest_of({"base": base, **{key: spec[key] for key in ("dataset", "image_px", "view")}})
    )
    features, classes, groups = {}, {}, {}
    for split, manifest in manifests.items():
        values, rows = _features_of(manifest, split, cache, annotator, spec, machine)
        features[split] = values
        classes[split] = torch.from_numpy(manifest.class_index[rows].astype(np.int64))
        groups[split] = manifest.group_id[rows].tolist()
    names = manifests["train"].classes
    counts = torch.bincount(classes["train"], minlength=len(names))
    if (counts == 0).any():
        raise DataError(f"class {names[int((counts == 0).nonzero()[0])]}: no readable training photograph. Add some.")
    folds = spec["adaptation"]["folds"]
    fold = fold_of(groups["train"], folds or CROSS_VALIDATION)
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
    _save(spec, annotator, head, heads, names, facts, done)
    return facts


def _described(features: Tensor, classes: Tensor, head: Head) -> dict[str, Any] | None:
    if not len(classes):
        logger.warning("no readable validation photograph: the annotator's accuracy is not known")
        return None
    return dataclasses.asdict(measure(head(features), classes))


def _save(
    spec: dict[str, Any], annotator: Annotator, head: Head, fold_heads: list[Head], names: tuple[str, ...],
    facts: dict[str, Any], done: Path,
) -> None:  # fmt: skip
    backbone = annotator.backbone
    backbone.reset_classifier(len(names))
    found = backbone.get_classifier()
    for layer in found if isinstance(found, (tuple, list)) else [found]:  # DeiT averages two
        layer.weight.data.copy_(head.weight.view_as(layer.weight))
        layer.bias.data.copy_(head.bias)
    _write_checkpoint(spec, backbone, names, facts, done, fold_heads)


def _write_checkpoint(
    spec: dict[str, Any], backbone: nn.Module, names: tuple[str, ...], facts: dict[str, Any], done: Path,
    fold_heads: list[Head],
) -> None:  # fmt: skip
    folds_sha256 = None
    if fold_heads:
        layers = nn.ParameterDict({
            "weight": nn.Parameter(torch.stack([head.weight for head in fold_heads])),
            "bias": nn.Parameter(torch.stack([head.bias for head in fold_heads])),
        })  # fmt: skip
        save_weights(layers, done.with_name(FOLD_HEADS), {"what": "heads by fold: weight (folds, classes, features)"})
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
    backbone = create_backbone(architecture, len(names), spec["image_px"], state, str(weights))
    _write_checkpoint(spec, backbone, names, {}, done, [])
    section = spec["annotator"] | {"weights": f"file:{done.with_name(ADAPTED_CHECKPOINT).resolve()}", "weights_naming": "timm",
                                   "weights_sha256": None, "image_px": spec["image_px"]}  # fmt: skip
    annotator = build_annotator(section, Path())
    logits, classes = [], []
    for images, rows in _batches(manifests["val"], np.arange(len(manifests["val"])), annotator, spec, machine):
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


def _features_of(
    manifest: Manifest, split: str, cache: Path, annotator: Annotator, spec: dict[str, Any], machine: dict[str, Any]
) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Pooled features of all readable photographs and their rows; those on disk are not computed again."""
    found: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
    position = {int(identifier): row for row, identifier in enumerate(manifest.sample_id.tolist())}
    unreadable: set[int] = set()
    for path in sorted(cache.glob(f"{split}-*.npz")):
        with np.load(path) as chunk:
            for identifier, values in zip(chunk["sample_id"].tolist(), chunk["features"], strict=True):
                if identifier in position:
                    found[position[identifier]] = values
            unreadable |= {position[i] for i in chunk["unreadable"].tolist() if i in position}
    pending = np.array(
        [row for row in range(len(manifest)) if row not in found and row not in unreadable], dtype=np.int64
    )
    if len(found):
        logger.info("%s: features of %d photographs are there, %d to go", split, len(found), len(pending))
    for start in range(0, len(pending), CHUNK):
        rows = pending[start : start + CHUNK]
        read: list[int] = []
        values = []
        for images, readable in _batches(manifest, rows, annotator, spec, machine):
            values.append(annotator.pooled(images).float().cpu().numpy())
            read += readable.tolist()
        missing = sorted(set(rows.tolist()) - set(read))
        found |= dict(zip(read, np.concatenate(values) if values else [], strict=True))
        path = cache / f"{split}-{manifest.sample_id[rows[0]]:016x}.npz"
        remove_leftovers(path)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, sample_id=manifest.sample_id[read], unreadable=manifest.sample_id[missing],
                features=np.concatenate(values) if values else np.empty((0, 0), np.float32),
            )  # fmt: skip
        logger.info("%s: features of %d of %d photographs", split, min(start + CHUNK, len(pending)), len(pending))
    rows = np.array(sorted(found), dtype=np.int64)
    width = annotator.classifier.in_features
    stacked = np.stack([found[row] for row in rows.tolist()]) if len(rows) else np.empty((0, width), np.float32)
    return torch.from_numpy(stacked), rows


def _batches(
    manifest: Manifest, rows: np.ndarray[Any, np.dtype[np.int64]], annotator: Annotator, spec: dict[str, Any],
    machine: dict[str, Any],
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
        for index in set(range(len(batch.rows))) - set(keep):
            logger.warning("%s: cannot be decoded (%s)", manifest.path(batch.rows[index]), batch.reasons[index])
        if keep:
            images = normalise(batch.to(device)[keep], preprocessing.mean, preprocessing.std)
            with autocast(device, precision):
                yield images, np.array(batch.rows, dtype=np.int64)[keep]
