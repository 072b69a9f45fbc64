"""The accuracy of a trained run, and what the model costs. Reads a run's folder, writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.files import sha256_of
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.run_model import model_of_spec
from ..engine.validation import CenterCrops, measure_accuracy
from ..models import (
    TokenModel,
    count_multiply_adds,
    count_parameters,
    load_weights,
    read_metadata,
)


def weights_of_run(seed_folder: Path, *, use_ema: bool) -> Path:
    """The weights to measure: averaged ones where wanted and kept.

    Raises:
        CheckpointError: the run has left no weights.
    """
    averaged = seed_folder / "model_ema.safetensors"
    path = averaged if use_ema and averaged.exists() else seed_folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(
            f"{path}: the run has left no weights. Delete {seed_folder / 'done.json'} and run snakemake."
        )
    return path


def load_trained(path: Path) -> tuple[TokenModel, dict[str, Any], list[str]]:
    """Builds the model that a checkpoint of ours says it is.

    Args:
        path: model.safetensors or model_ema.safetensors of a run.

    Returns:
        the model in eval mode, its spec, and its class names.

    Raises:
        CheckpointError: not a checkpoint of this package.
    """
    metadata = read_metadata(path)
    if "spec" not in metadata:
        raise CheckpointError(
            f"{path}: no spec in its metadata, so its model is unknown. Expected a model.safetensors of a run under "
            "results/runs."
        )
    spec = json.loads(metadata["spec"])
    model = model_of_spec(spec)
    load_weights(model, path)
    return model.eval(), spec, json.loads(metadata["classes"])


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
    path = weights_of_run(seed_folder, use_ema=evaluation["use_ema"])
    model, spec, _ = load_trained(path)
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    crops = CenterCrops(
        manifest, machine, spec["image_px"], evaluation["crop"], evaluation["interpolation"], model.mean, model.std
    )
    accuracy = measure_accuracy(
        model, crops, machine, num_classes=model.num_classes, device=device, precision=precision
    )
    model.to("cpu")
    return {
        **accuracy,
        "parameters_m": count_parameters(model) / 1e6,
        "gmacs": count_multiply_adds(model, spec["image_px"]) / 1e9,
        "weights": path.name,
        "weights_sha256": sha256_of(path),
    }
