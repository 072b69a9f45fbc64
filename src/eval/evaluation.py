"""The accuracy of a trained run, and what the model costs. Reads a run's folder, writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.files import sha256_of
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.validation import CenterCrops, measure_accuracy
from ..models import count_multiply_adds, count_parameters, load_model


def evaluate_run(
    seed_folder: Path, evaluation: dict[str, Any], machine: dict[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Measures one run.

    Args:
        seed_folder: the run's folder of one seed.
        evaluation: crop, interpolation, use_ema.
        machine: device, precision, workers.
        manifest: of the validation split.

    Returns:
        top1 and top5 in percent, image counts, parameters (10^6), multiply-adds (10^9), the weights' sha256.
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
    model.to("cpu")
    return {
        **accuracy,
        "parameters_m": count_parameters(model) / 1e6,
        "gmacs": count_multiply_adds(model, model.image_px) / 1e9,
        "weights": path.name,
        "weights_sha256": sha256_of(path),
    }
