"""One run: builds model, data and loss from a spec, and says what of it shall be saved; `engine.run_job` does the rest.

Called by the command. Leaves model.safetensors (and model_ema.safetensors where the recipe averages) with the spec in
their metadata, and config.json, which says what the model is: `load_model` and timm read the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.config import Recipe
from ..core.errors import CheckpointError, LabelError
from ..core.files import sha256_of
from ..core.identity import digest_of
from ..core.recipes import recipe_of, scaled_rate, with_batch
from ..data.manifest import Manifest
from ..engine.loop import FitResult, Task
from ..engine.optimisation import Optimisation
from ..engine.run_job import Run, run_training
from ..engine.validation import CenterCrops, measure_accuracy
from ..labels import LabelStore
from ..models import TokenModel, describe_model, save_weights, settings_of_spec, write_model_config
from ..models.weights import AVERAGED_FILE, WEIGHTS_FILE
from .augment import Augmentation
from .batches import Batches, TrainingSet
from .preflight import LabelCoverage, check_before_training
from .start import build_model
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
    **leg: Any,
) -> dict[str, Any]:
    """Trains one run, or a leg of it, and writes its marker.

    Args:
        spec: the run's spec (stage train or finetune).
        machine: device, precision, batch split, workers.
        manifests: train and val.
        labels_folder: of the annotator's shards, None for hard labels.
        start_folder: seed folder of the run that fine-tuning starts from.
        seed: of the run.
        done: the marker; weights, checkpoints and metrics lie beside it.
        eval_crop: share of the shorter side that evaluation keeps, for config.json; None: the machine's validation_crop.
        leg: until_epoch, legs, deadline_s, requeue, allow_changed, as `run_training` takes them.

    Returns:
        what the marker says.

    Raises:
        StoppedError: a signal or the deadline came; the state is saved, its exit_code is for the process.
    """
    job = _Job(manifests, labels_folder, start_folder, eval_crop)
    return run_training(lambda run: _train(job, run), spec, machine, seed=seed, done=done, **leg)


@dataclass(frozen=True)
class _Job:
    """What a run is made of, as `train_run` was given it."""

    manifests: dict[str, Manifest]
    labels_folder: Path | None
    start_folder: Path | None
    eval_crop: float | None


def _train(job: _Job, run: Run) -> dict[str, Any]:
    """Trains; returns what the marker shall say of it."""
    spec, machine, manifest = run.spec, run.machine, job.manifests["train"]
    recipe = recipe_of(spec, Recipe)  # here, so that of several processes one speaks
    device, precision = run.set_up_device()
    model = build_model(spec, job.start_folder, run.seed, Path(machine["weights_root"]))
    if machine["grad_checkpointing"]:
        model.set_grad_checkpointing()
    store = _open_labels(job.labels_folder, spec, manifest)
    dataset = TrainingSet(
        manifest, machine, Augmentation(spec["recipe"], spec["image_px"], model.mean, model.std), store, run.seed
    )
    batches = Batches(
        dataset,
        batch_size=recipe.batch_size,
        micro_batch=machine["micro_batch"],
        workers=machine["workers"],
        processes=run.processes,
    )
    check_before_training(
        spec=spec, machine=machine, recipe=recipe, manifest=manifest, store=store, batches_size=batches.batch_size,
        processes_count=run.processes.count, classes=manifest.classes,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )  # fmt: skip
    optimisation = _optimisation(recipe, batches.batch_size)
    return run.train(
        model,
        _task(job, run, batches, model, device, precision),
        optimisation,
        device=device,
        precision=precision,
        micro_batch=batches.micro_batch,
        save=lambda result: _save_results(result, job, run, model),
        unreadable=dataset.unreadable,
        missed_each_epoch=dataset.unreadable,
        summary={
            "batch_size": batches.batch_size,
            "learning_rate": optimisation.learning_rate,
            "labels_coverage": None if store is None else LabelCoverage.of(store, manifest).share,
        },
    )


def _task(
    job: _Job, run: Run, batches: Batches, model: TokenModel, device: torch.device, precision: torch.dtype
) -> Task:
    """What the loop trains and measures."""
    train, machine, image_px = job.manifests["train"], run.machine, run.spec["image_px"]
    crops = CenterCrops(
        job.manifests["val"], machine, image_px, machine["validation_crop"], "bicubic", model.mean, model.std
    )
    supervision = Supervision(run.spec["recipe"], model.num_classes, model.grid, image_px, run.seed)
    return Task(
        batches=batches,
        steps_per_epoch=batches.steps_per_epoch,
        loss=supervision.loss,
        parts=supervision.parts,
        validate=lambda measured, look: measure_accuracy(
            measured, crops, machine, num_classes=model.num_classes, device=device, precision=precision,
            processes=run.processes, before_batch=look,
        ),
        validate_every_epochs=machine["validate_every_epochs"],
        describe=lambda sample_ids: [
            train.path(row) for row in np.flatnonzero(np.isin(train.sample_id, sample_ids)).tolist()
        ],
    )  # fmt: skip


def _save_results(result: FitResult, job: _Job, run: Run, model: TokenModel) -> str:
    """Writes what the run is for: weights, and what they are; returns the digest of the last weights."""
    write_model_config(
        run.folder,
        describe_model(
            model,
            run.spec["model"]["architecture"],
            settings_of_spec(run.spec),
            job.manifests["train"].classes,
            crop=job.eval_crop or run.machine["validation_crop"],
        ),
    )
    metadata = {"spec": json.dumps(run.spec), "seed": str(run.seed)}
    save_weights(result.model, run.folder / WEIGHTS_FILE, metadata)
    if result.averaged is not None:
        save_weights(result.averaged, run.folder / AVERAGED_FILE, metadata)
    return sha256_of(run.folder / WEIGHTS_FILE)


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
    recipe = with_batch(recipe, batch_size)  # the one really used: a small data set's is smaller
    return Optimisation(
        epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        learning_rate=scaled_rate(recipe, batch_size),
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.warmup_learning_rate,
        warmup_epochs=recipe.warmup_epochs,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
    )
