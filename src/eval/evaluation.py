"""The accuracy of a trained run, how far its tokens agree with an annotator, and what the model costs. Writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.files import sha256_of
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.validation import CenterCrops, measure_accuracy
from ..labels import LabelStore
from ..models import count_multiply_adds, count_parameters, load_model
from .agreement import measure_agreement


def evaluate_run(
    seed_folder: Path, evaluation: dict[str, Any], machine: dict[str, Any], manifest: Manifest,
    labels_folder: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures one run.

    Args:
        seed_folder: the run's folder of one seed.
        evaluation: crop, interpolation, use_ema.
        machine: device, precision, workers.
        manifest: of the validation split.
        labels_folder: an annotator's maps of that split, to compare the tokens with; None: not compared.

    Returns:
        top1 and top5 in percent, image counts, parameters (10^6), multiply-adds (10^9), the weights' sha256; with labels what
        `measure_agreement` gives.
    """
    loaded = load_model(seed_folder, use_ema=evaluation["use_ema"])
    model, path = loaded.model, Path(loaded.report.where)
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    crops = CenterCrops(
        manifest, machine, model.image_px, evaluation["crop"], evaluation["interpolation"], model.mean, model.std
    )
    accuracy = measure_accuracy(
        model, crops, machine, num_classes=model.num_classes, device=device, precision=precision
    )
    parameters_m = count_parameters(model) / 1e6
    agreement: dict[str, Any] = {}
    if labels_folder is not None:
        store = LabelStore(labels_folder, split=manifest.split, manifest_digests=manifest.shard_digests)
        agreement = measure_agreement(
            model, crops, evaluation["crop"], machine, manifest, store, device=device, precision=precision
        )
    model.to("cpu")
    return {
        **accuracy,
        **agreement,
        "parameters_m": parameters_m,
        "gmacs": count_multiply_adds(model, model.image_px) / 1e9,
        "weights": path.name,
        "weights_sha256": sha256_of(path),
    }
