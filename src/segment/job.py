"""One run: builds segmenter, scenes and loss from a spec, and says what of it shall be saved; `engine.run_job` does the rest.

Called by the command. Leaves model.safetensors (and model_ema.safetensors where the recipe averages) and config.json, as
`load_segmenter` reads them. An epoch of the engine is an interval of the recipe's iterations. Source: section 4.4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.files import sha256_of
from ..core.log import logger
from ..core.recipes import recipe_of
from ..core.segment_config import SegmentRecipe
from ..data.scenes import SceneManifest
from ..engine.loop import FitResult, Task
from ..engine.optimisation import LinearSchedule, Optimisation
from ..engine.run_job import Run, run_training
from ..models.segmentation import SegmentationModel, save_segmenter
from ..models.weights import WEIGHTS_FILE
from .augment import SceneAugmentation
from .batches import SceneBatches, SceneTrainingSet
from .losses import SceneLoss, memory_mb
from .start import build_segmenter
from .testing import Look, ResizedScenes, measure_scenes


def segment_run(
    spec: dict[str, Any],
    machine: dict[str, Any],
    *,
    manifests: dict[str, SceneManifest],
    start_folder: Path | None,
    seed: int,
    done: Path,
    **leg: Any,
) -> dict[str, Any]:
    """Trains one segmenter, or a leg of it, and writes its marker.

    Args:
        spec: the run's spec (stage segment).
        machine: device, precision, segment_micro_batch, workers, segmentation_root and scenes.
        manifests: of the scenes, train and val.
        start_folder: seed folder of the backbone's run; None where the spec names none.
        seed: of the run.
        done: the marker; weights, checkpoints and metrics lie beside it.
        leg: until_epoch (intervals), legs, deadline_s, requeue, allow_changed, as `run_training` takes them.

    Returns:
        what the marker says.

    Raises:
        StoppedError: a signal or the deadline came; the state is saved, its exit_code is for the process.
    """
    if machine["sharding"] != "none":
        logger.info(
            "machine.sharding %s: segmenters are not sharded; each process holds all weights", machine["sharding"]
        )
    # photographs differ in their number of windows, so processes that share weights would wait for each other in validations
    machine = machine | {"micro_batch": machine["segment_micro_batch"], "sharding": "none", "segments": True}
    return run_training(
        lambda run: _train(run, manifests, start_folder), spec, machine, seed=seed, done=done, **leg
    )  # fmt: skip


def _train(run: Run, manifests: dict[str, SceneManifest], start_folder: Path | None) -> dict[str, Any]:
    """Trains; returns what the marker shall say of it."""
    spec, machine, manifest = run.spec, run.machine, manifests["train"]
    recipe = recipe_of(spec, SegmentRecipe)
    if len(manifest.classes) != spec["dataset"]["num_classes"]:
        raise ConfigError(
            f"spec.json: dataset.num_classes {spec['dataset']['num_classes']}, the manifest has {len(manifest.classes)} classes. "
            "Give the manifest of this spec's scenes."
        )
    device, precision = run.set_up_device()
    model = build_segmenter(spec, start_folder, run.seed, Path(machine["weights_root"]))
    if machine["grad_checkpointing"]:
        model.set_grad_checkpointing()
    dataset = SceneTrainingSet(manifest, machine, SceneAugmentation(spec["recipe"], model.mean, model.std), run.seed)
    batches = SceneBatches(
        dataset,
        batch_size=recipe.batch_size,
        micro_batch=machine["micro_batch"],
        workers=machine["workers"],
        interval_iterations=recipe.interval_iterations,
        processes=run.processes,
    )
    pixel_mb = memory_mb(model.num_classes, recipe.crop_px, batches.micro_batch)
    logger.info(
        "%.1f million parameters; the loss of %d photographs takes %.0f MB",
        sum(weight.numel() for weight in model.parameters()) / 1e6, batches.micro_batch, pixel_mb,
    )  # fmt: skip
    loss = SceneLoss(recipe.auxiliary_weight, has_auxiliary=model.auxiliary is not None)
    look = Look.of_recipe(spec["recipe"])
    scenes = ResizedScenes(manifests["val"], machine, look)

    def validate(measured: Any, before_scene: Any) -> dict[str, float]:
        found = measure_scenes(
            measured, scenes, [look], machine, device=device, precision=precision, processes=run.processes,
            before_scene=before_scene,
        )  # fmt: skip
        (confusion,) = found.confusions
        return {
            "miou": confusion.miou, "pixel_accuracy": confusion.pixel_accuracy, "val_images": found.images,
            "val_skipped": found.skipped,
        }  # fmt: skip

    task = Task(
        batches=batches,
        steps_per_epoch=batches.steps_per_epoch,
        loss=loss.loss,
        parts=loss.parts,
        validate=validate,
        validate_every_epochs=machine["validate_every_epochs"],
        describe=lambda sample_ids: [
            manifest.image_paths[row] for row in np.flatnonzero(np.isin(manifest.sample_id, sample_ids)).tolist()
        ],
    )
    return run.train(
        model,
        task,
        _optimisation(recipe),
        device=device,
        precision=precision,
        micro_batch=batches.micro_batch,
        save=lambda result: _save_results(result, run, manifest.classes),
        unreadable=len(manifest.unreadable),
        missed_each_epoch=0,  # an interval is no pass over the scenes
        summary={"batch_size": batches.batch_size, "learning_rate": recipe.learning_rate},
    )


def _save_results(result: FitResult, run: Run, classes: tuple[str, ...]) -> str:
    """Writes the segmenter; returns the digest of the last weights."""
    model, averaged = result.model, result.averaged
    assert isinstance(model, SegmentationModel)
    assert averaged is None or isinstance(averaged, SegmentationModel)
    save_segmenter(run.folder, model, run.spec, classes, run.seed, averaged=averaged)
    return sha256_of(run.folder / WEIGHTS_FILE)


def _optimisation(recipe: SegmentRecipe) -> Optimisation:
    return Optimisation(
        epochs=recipe.iterations // recipe.interval_iterations,
        cooldown_epochs=0,
        learning_rate=recipe.learning_rate,
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.warmup_learning_rate,
        warmup_epochs=0,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
        linear=LinearSchedule(recipe.iterations, recipe.warmup_iterations),
    )
