"""One run: builds model, data and loss from a spec, trains or continues, and leaves weights and a marker.

Called by the command. Writes model.safetensors (and model_ema.safetensors where the recipe averages) with the spec in
their metadata, and config.json, which says what the model is: `load_model` and timm read the folder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..core.config import Recipe
from ..core.errors import CheckpointError, LabelError
from ..core.files import Lease, sha256_of, write_json
from ..core.identity import digest_of
from ..core.log import logger
from ..core.seeds import derived_seed
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.loop import Optimisation, Task, fit
from ..engine.run_model import model_of_spec
from ..engine.validation import CenterCrops, measure_accuracy
from ..labels import LabelStore
from ..models import TokenModel, describe_model, load_checkpoint, save_weights, settings_of_spec, write_model_config
from ..models.pretrained import load_pretrained
from .augment import Augmentation
from .batches import Batches, TrainingSet
from .supervision import Supervision


def train_run(
    spec: dict[str, Any],
    machine: dict[str, Any],
    *,
    manifests: dict[str, Manifest],
    labels_folder: Path | None,
    start_folder: Path | None,
    seed: int,
    done: Path,
    eval_crop: float | None = None,
) -> dict[str, Any]:
    """Trains one run and writes its marker.

    Args:
        spec: the run's spec (stage train or finetune).
        machine: device, precision, batch split, workers.
        manifests: train and val.
        labels_folder: of the annotator's shards, None for hard labels.
        start_folder: seed folder of the run that fine-tuning starts from.
        seed: of the run.
        done: the marker; weights and metrics lie beside it.
        eval_crop: share of the shorter side that evaluation keeps, for config.json; None: the machine's validation_crop.

    Returns:
        what the marker says.
    """
    started = time.monotonic()
    folder = done.parent
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.model_validate(spec["recipe"])
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    logger.info("device %s, precision %s, micro-batch %d", device, precision, machine["micro_batch"])

    with Lease(folder / "run.lease"):
        model = build_model(spec, start_folder, seed, Path(machine["weights_root"]))
        store = _open_labels(labels_folder, spec, manifests["train"])
        dataset = TrainingSet(
            manifests["train"],
            machine,
            Augmentation(spec["recipe"], spec["image_px"], model.mean, model.std),
            store,
            seed,
        )
        if dataset.unreadable:
            logger.warning("%d photographs are unreadable and take no part in the training", dataset.unreadable)
        batches = Batches(
            dataset,
            batch_size=recipe.batch_size,
            micro_batch=machine["micro_batch"],
            workers=machine["workers"],
        )
        if batches.batch_size < recipe.batch_size:
            logger.warning("batch_size %d: only %d photographs", recipe.batch_size, batches.batch_size)
        crops = CenterCrops(
            manifests["val"], machine, spec["image_px"], machine["validation_crop"], "bicubic", model.mean, model.std
        )
        supervision = Supervision(spec["recipe"], model.num_classes, seed)
        result = fit(
            model,
            Task(
                batches=batches,
                steps_per_epoch=batches.steps_per_epoch,
                loss=supervision.loss,
                validate=lambda measured: measure_accuracy(
                    measured, crops, machine, num_classes=model.num_classes, device=device, precision=precision
                ),
                validate_every_epochs=machine["validate_every_epochs"],
            ),
            _optimisation(recipe, batches.batch_size),
            folder,
            digest=f"{digest_of(spec)}-seed{seed}",
            seed=seed,
            device=device,
            precision=precision,
        )
        config = describe_model(
            model,
            spec["model"]["architecture"],
            settings_of_spec(spec),
            manifests["train"].classes,
            crop=eval_crop or machine["validation_crop"],
        )
        write_model_config(folder, config)
        metadata = {"spec": json.dumps(spec), "seed": str(seed)}
        save_weights(result.model, folder / "model.safetensors", metadata)
        if result.averaged is not None:
            save_weights(result.averaged, folder / "model_ema.safetensors", metadata)
        marker = {
            "digest": digest_of(spec),
            "seed": seed,
            "epochs": recipe.epochs + recipe.cooldown_epochs,
            "steps_per_epoch": batches.steps_per_epoch,
            "micro_batch": batches.micro_batch,
            "images": result.images,
            "skipped": result.skipped + dataset.unreadable * (recipe.epochs + recipe.cooldown_epochs),
            "unreadable": dataset.unreadable,
            "weights_sha256": sha256_of(folder / "model.safetensors"),
            "seconds": round(time.monotonic() - started, 3),
        }
        write_json(done, marker)
        (folder / "checkpoint.pt").unlink(missing_ok=True)  # the optimiser's state is twice the weights
    return marker


def build_model(spec: dict[str, Any], start_folder: Path | None, seed: int, weights_root: Path = Path()) -> TokenModel:
    """The model of a spec in its starting weights: drawn from the seed, pretrained, or the weights of the run before.

    Raises:
        CheckpointError: the run before has no weights.
    """
    torch.manual_seed(derived_seed("initialise", seed))
    model = model_of_spec(spec)
    if spec["model"].get("weights") is not None and spec["start"] is None:
        source = spec["model"] | {"architecture": spec["model"]["architecture"].removeprefix("timm/")}
        pretrained = load_pretrained(source, weights_root)
        logger.info("starting from %s", pretrained.origin)
        load_checkpoint(model, pretrained.state)
    if spec["start"] is not None:
        if start_folder is None:
            raise CheckpointError("this run continues another one; give --start, the seed folder of that run.")
        load_checkpoint(model, start_folder, reset_heads=False)
    return model


def _open_labels(folder: Path | None, spec: dict[str, Any], manifest: Manifest) -> LabelStore | None:
    if spec["labels"] is None:
        return None
    if folder is None:
        raise CheckpointError("this run learns from labels; give --labels, the folder of the annotator's shards.")
    store = LabelStore(folder, split="train", manifest_digests=manifest.shard_digests)
    found, expected = store.attributes.labels_digest, digest_of(spec["labels"])
    if found != expected:
        raise LabelError(
            f"labels {folder} of {store.annotator}: made by another annotator or with other settings (spec {found}, "
            f"the run learns from {expected}). Give the right --labels folder."
        )
    return store


def _optimisation(recipe: Recipe, batch_size: int) -> Optimisation:
    # linear scaling by the batch that is really used, which a small data set or a cap makes smaller
    factor = batch_size / recipe.learning_rate_batch if recipe.learning_rate_batch else 1.0
    return Optimisation(
        epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        learning_rate=recipe.learning_rate * factor,
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.warmup_learning_rate,
        warmup_epochs=recipe.warmup_epochs,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
    )
